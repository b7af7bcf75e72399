"""Files of patches: one patch, several, or a posterior."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from astropy.io import fits


def read_patch(path: Path, linear: bool = False) -> np.ndarray:
    """Read a square patch of natural-log intensity.

    Parameters
    ----------
    path : Path
        ``.npy``, ``.npz`` (the array ``patch``), or FITS (the first image).
    linear : bool
        Whether the file holds intensity; what is not positive becomes NaN.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds no square patch.
    """
    patch = read_array(path)
    if patch.ndim != 2 or patch.shape[0] != patch.shape[1]:
        raise ValueError(f"{str(path)!r} has the shape {patch.shape}: one square patch is needed")
    if linear:
        dark = int((patch <= 0).sum())
        if 2 * dark > patch.size:
            raise ValueError(
                f"{dark} of {patch.size} pixels of {str(path)!r} are not positive, and have no "
                "logarithm: if they are logarithms, leave out --linear"
            )
        patch = np.log(np.where(patch > 0, patch, np.nan))
    return patch


def read_panels(path: Path) -> dict[str, np.ndarray]:
    """What there is to see in a file, by its headings.

    Parameters
    ----------
    path : Path
        A patch, the frames of a path between two, or a posterior.

    Returns
    -------
    dict of str to ndarray, each (size, size)
        Of a posterior two draws, "mean" and "standard deviation".

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds nothing of the kind.
    """
    from pysm_vae.vae.inference import Posterior

    found = None
    if path.suffix == ".npz" and path.is_file():
        with suppress(ValueError):
            found = Posterior.load(path)
    if found is not None:
        draws = dict(zip(("one draw", "another"), found.draws(2), strict=True))
        return {**draws, "mean": found.mean, "standard deviation": found.std}
    array = read_array(path)
    if array.ndim == 3 and len(array):
        some = np.linspace(0, len(array) - 1, min(len(array), 5)).round().astype(int)
        return {f"{number + 1} of {len(array)}": array[number] for number in some}
    if array.ndim != 2:
        raise ValueError(f"{str(path)!r} has the shape {array.shape}: a patch, or some, are needed")
    return {"patch": array}


def read_array(path: Path) -> np.ndarray:
    """Read an array from ``.npy``, ``.npz`` (the array ``patch``) or FITS (the first image).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no patch at {str(path)!r}")
    try:
        if path.suffix == ".npz":
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                return np.asarray(file["patch"], float)
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False), float)
        with fits.open(path) as hdus:
            images = [hdu.data for hdu in hdus if hdu.is_image and hdu.data is not None]
            if not images:
                raise ValueError("it has no image; a patch of a HEALPix map has to be cut out")
            return np.squeeze(np.asarray(images[0], float))
    except (ValueError, KeyError, IndexError, OSError, EOFError, BadZipFile) as error:
        raise ValueError(
            f"{str(path)!r} holds no patch: it must be .npy, .npz with the array 'patch', or a "
            f"FITS image ({error})"
        ) from error
