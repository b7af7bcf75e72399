"""Fixtures that all rooms share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    """One default seed for every test that needs random numbers."""
    return np.random.default_rng(20210504)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real Planck maps that lie beside the checkout where the project is developed."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "planck_taurus_lognh.fits").is_file():
        pytest.skip("the real Planck maps are not beside this checkout")
    return folder
