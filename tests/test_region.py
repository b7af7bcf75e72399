"""Parts of the sky: discs and masks, as pixels."""

from __future__ import annotations

from pathlib import Path

import healpy as hp
import numpy as np
import pytest

from pysm_vae.region import region_pixels

NSIDE = 32


def mask(path: Path, values: np.ndarray, **options) -> Path:
    hp.write_map(path, values, dtype=np.float32, **{"coord": "G"} | options)
    return path


@pytest.mark.parametrize(("lon", "lat", "radius"), [(110, -38, 10), (0, 90, 5), (-75, 0, 170)])
def test_disc(lon, lat, radius):
    """By the law of cosines, pixel by pixel."""
    found = region_pixels(f"{lon},{lat}, {radius}", NSIDE)
    other, north = np.radians(hp.pix2ang(NSIDE, np.arange(12 * NSIDE**2), lonlat=True))
    cosine = np.sin(np.radians(lat)) * np.sin(north)
    cosine += np.cos(np.radians(lat)) * np.cos(north) * np.cos(other - np.radians(lon))
    np.testing.assert_array_equal(found, np.flatnonzero(cosine >= np.cos(np.radians(radius))))
    np.testing.assert_array_equal(found, region_pixels((lon, lat, radius), NSIDE))


@pytest.mark.parametrize("ordering", ["ring", "nested", "partial"])
def test_mask(tmp_path, rng, ordering):
    npix = 12 * NSIDE**2
    values = np.ones(npix)
    values[1000:2000] = rng.normal(size=1000)
    wanted = rng.permutation(npix)[:2000]
    values[wanted[:1000]] = 0
    values[wanted[1000:1500]] = hp.UNSEEN
    options = {"partial": ordering == "partial", "nest": ordering == "nested"}
    if ordering != "partial":
        # healpy's partial maps leave UNSEEN out, and NaN is what a bad pixel of another may be.
        values[wanted[1500:]] = np.nan
    else:
        values[wanted[1500:]] = hp.UNSEEN
    kept = np.setdiff1d(np.arange(npix), wanted)
    if ordering == "nested":
        values = hp.reorder(values, r2n=True)
    found = region_pixels(mask(tmp_path / "m.fits", values, **options), NSIDE)
    np.testing.assert_array_equal(found, kept)


def test_coarser_and_finer_masks(tmp_path):
    values = np.zeros(12 * 8**2)
    values[[5, 100]] = 1
    path = mask(tmp_path / "m.fits", values)
    fine = region_pixels(str(path), NSIDE)
    theta, phi = hp.pix2ang(NSIDE, np.arange(12 * NSIDE**2))
    inside = np.isin(hp.ang2pix(8, theta, phi), [5, 100])
    np.testing.assert_array_equal(fine, np.flatnonzero(inside))
    # One wanted pixel of a finer mask is enough.
    np.testing.assert_array_equal(
        region_pixels(path, 4), np.unique(hp.ang2pix(4, *hp.pix2ang(8, [5, 100])))
    )


@pytest.mark.parametrize("region", ["1,2", "1,2,x", "none.fits", "1,2,3,4"])
def test_no_such_thing(region):
    with pytest.raises(FileNotFoundError, match=r"no such file.*lon,lat,radius"):
        region_pixels(region, NSIDE)


@pytest.mark.parametrize("region", ["nan,0,5", "0,95,5", "0,0,0", "0,0,181", (0, 0, -1)])
def test_no_disc(region):
    with pytest.raises(ValueError, match="in degrees"):
        region_pixels(region, NSIDE)


def test_nothing_left(tmp_path):
    with pytest.raises(ValueError, match="make it larger"):
        region_pixels("10,10,0.01", NSIDE)
    with pytest.raises(ValueError, match="wants no pixel"):
        region_pixels(mask(tmp_path / "m.fits", np.zeros(48)), NSIDE)
    with pytest.raises(ValueError, match=r"not .*lon, lat, radius"):
        region_pixels((1, 2), NSIDE)


def test_bad_files(tmp_path):
    text = tmp_path / "a.fits"
    text.write_text("no map")
    with pytest.raises(ValueError, match="cannot be read as FITS"):
        region_pixels(text, NSIDE)
    turned = mask(tmp_path / "c.fits", np.ones(48), coord="C")
    with pytest.raises(ValueError, match=r"coordinates 'C'.*coord=\['C', 'G'\]"):
        region_pixels(turned, NSIDE)
