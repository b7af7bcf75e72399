"""The command ``pysm-vae``. Thin: each subcommand reads its options and calls one function.

The rooms are imported inside the subcommands, so that ``--help`` does not wait for them.
"""

# Importing the subcommands adds them to the app, in the order in which --help lists them.
from pysm_vae.cli import sky, learning, inverse, about  # isort: skip
from pysm_vae.cli.app import app

__all__ = ["about", "app", "inverse", "learning", "sky"]
