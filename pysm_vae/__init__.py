"""Non-Gaussian Galactic dust for PySM 3, learned from Planck with a variational autoencoder.

Importing the package adds the class ``VAEDust`` and the presets (``vae0``, …) to PySM.
TensorFlow is imported when the first patch is drawn, not before.
"""

from importlib.metadata import version

from pysm_vae.dust import VAEDust
from pysm_vae.registration import register
from pysm_vae.vae.generator import Generator, load_generator

__all__ = ["Generator", "VAEDust", "load_generator", "register"]
__version__ = version("pysm_vae")

register()
