"""Measure the calibration of the default sky's small scales: ``data/ground.json``.

``python data/build_ground.py`` does it again, in some seconds, after new default weights, another
embedded template, or another way of measuring (:class:`pysm_vae.sky.ground.Ground`).
"""

from __future__ import annotations

import json
from pathlib import Path

from pysm_vae.files import atomic_write
from pysm_vae.sky.calibration import Spectrum
from pysm_vae.sky.ground import Ground, calibrated
from pysm_vae.sky.templates import SPLIT, load_template
from pysm_vae.vae.generator import load_generator


def main() -> None:
    """Write the file beside this one."""
    of = load_generator(), load_template("embedded"), Spectrum(), SPLIT
    found = {"of": calibrated(*of), **Ground(*of, shipped=False).calibration}
    with atomic_write(Path(__file__).with_name("ground.json")) as partial:
        partial.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
