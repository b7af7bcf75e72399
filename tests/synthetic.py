"""Small made-up skies and networks for tests that need one but not a real one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from scipy import ndimage

from pysm_vae.vae.generator import Generator, save_weights
from pysm_vae.vae.networks import PatchVAE, build_network
from pysm_vae.vae.patches import read_map
from pysm_vae.vae.training import TrainingMap

SIZE = 16
NETWORK = {
    "octaves": 2,
    "channels": 8,
    "fine_channels": 6,
    "encoder_channels": 8,
    "latents": 2,
}


def field(rng: np.random.Generator, pixels: int) -> np.ndarray:
    """Log-intensity with a steep spectrum whose small scales are strong where it is bright."""

    def red(slope: float) -> np.ndarray:
        k = np.hypot(np.fft.fftfreq(pixels)[:, None], np.fft.rfftfreq(pixels)[None, :])
        k[0, 0] = np.inf
        noise = np.fft.rfft2(rng.standard_normal((pixels, pixels)))
        values = np.fft.irfft2(noise * k ** (-slope / 2), (pixels, pixels))
        return (values - values.mean()) / values.std()

    large = red(3.5)
    return ndimage.gaussian_filter(large + 0.3 * np.exp(0.8 * large) * red(2.0), 1.0)


def make_map(
    folder: Path, name: str, seed: int, *, lon: float = 120.0, lat: float = 30.0, pixels: int = 160
) -> TrainingMap:
    """A map of 5' pixels, cut into patches of 10' pixels."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["GLON-TAN", "GLAT-TAN"]
    wcs.wcs.crval = [lon, lat]
    wcs.wcs.crpix = [pixels / 2 + 0.5] * 2
    wcs.wcs.cdelt = [-5 / 60, 5 / 60]
    values = field(np.random.default_rng(seed), pixels).astype(np.float32)
    path = folder / f"{name}.fits"
    fits.PrimaryHDU(values, wcs.to_header()).writeto(path, overwrite=True)
    return TrainingMap(read_map(path, log="ln"), 10.0, path, None)


def make_network(seed: int = 0) -> PatchVAE:
    """A tiny octave network with weights that are not those of any start."""
    network = build_network("octave", **NETWORK)
    rng = np.random.default_rng(seed)
    for variable in network.trainable_variables:
        variable.assign(0.1 * rng.standard_normal(variable.shape))
    network.adapt(np.stack([field(rng, SIZE) for _ in range(32)]).astype(np.float32))
    return network


def make_card(folder: Path, network: PatchVAE | None = None, name: str = "tiny") -> Path:
    """Weights and a card of a network, as training leaves them but for its records."""
    network = make_network() if network is None else network
    digest = save_weights(network, folder / f"{name}.npz")
    card = {
        "name": name,
        "architecture": network.name,
        "network": network.get_config(),
        "weights": f"{name}.npz",
        "sha256": digest,
        "size": SIZE,
        "pixel_size_arcmin": 10.0,
        "maps": [{"name": "made-up", "pixel_size_arcmin": 10.0, "environment": 0.0}],
        "transfer": [{"environment": 0.0, "power": [1.0] * (SIZE // 2)}],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(card))
    return path


def make_generator(folder: Path) -> Generator:
    """A tiny generator."""
    return Generator.from_card(make_card(folder))
