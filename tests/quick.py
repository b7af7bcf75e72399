"""A stand-in for VAEDust whose skies cost nothing, to test what is done with skies."""

from __future__ import annotations

import time
from typing import Any

import healpy as hp
import numpy as np
import pysm3.units as u

from pysm_vae.sky.templates import embedded_template
from pysm_vae.vae.generator import load_generator


class QuickDust:
    """Numbers that seed and pixel decide.

    Attributes
    ----------
    drawn : list of int
        Seeds of all that were made, of the class.
    seconds : (float, float)
        What each takes, and each of its pixels.
    stop : int or None
        Making this one raises :attr:`error`.
    """

    drawn: list[int] = []  # noqa: RUF012
    seconds = (0.0, 0.0)
    stop: int | None = None
    error: BaseException = KeyboardInterrupt()

    def __init__(
        self, nside: int, *, seed: int, progress: Any = None, map_dist: Any = None, **rest: Any
    ) -> None:
        del rest
        pixels = np.arange(hp.nside2npix(nside)) if map_dist is None else map_dist.pixel_indices
        time.sleep(self.seconds[0] + self.seconds[1] * len(pixels))
        if seed == self.stop:
            raise self.error
        self.drawn.append(seed)
        if progress is not None:
            progress(12, 12)
        self.nside, self.seed, self.lmax, self.pixels = nside, seed, 1.9 * nside, pixels
        self.constraint = None
        self.generator, self.template = load_generator(), embedded_template()
        self.freq_ref_I, self.freq_ref_P = 353 * u.GHz, 353 * u.GHz
        self.mbb_index, self.mbb_temperature = u.Quantity(1.5), 20 * u.K

    def get_emission(self, freqs: u.Quantity, weights: Any = None) -> u.Quantity:
        del weights
        i = 1.0 + np.cos(self.pixels + self.seed) ** 2 + freqs.to_value(u.GHz).mean()
        return np.stack([i, 0.1 * np.sin(self.pixels), 0.1 * np.cos(self.pixels)]) << u.uK_RJ
