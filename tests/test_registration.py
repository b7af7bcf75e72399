"""How PySM gets to know the class and its presets."""

from __future__ import annotations

import subprocess
import sys

import pysm3
import pytest

import pysm_vae
from pysm_vae.registration import presets, register


def test_class_and_presets_are_known():
    assert pysm3.sky.VAEDust is pysm_vae.VAEDust
    for name, preset in presets().items():
        assert pysm3.sky.PRESET_MODELS[name] == preset
        assert preset["class"] == "VAEDust"


def test_registering_twice_changes_nothing():
    before = dict(pysm3.sky.PRESET_MODELS)
    register()
    assert before == pysm3.sky.PRESET_MODELS


def test_a_taken_name_is_refused(monkeypatch):
    monkeypatch.setitem(pysm3.sky.PRESET_MODELS, "vae0", {"class": "CMBLensed"})
    with pytest.raises(ImportError, match="vae0"):
        register()


def test_another_class_is_refused(monkeypatch):
    monkeypatch.setattr(pysm3.sky, "VAEDust", object)
    with pytest.raises(ImportError, match="VAEDust"):
        register()


@pytest.mark.parametrize("name", ["PRESET_MODELS", "create_components_from_config"])
def test_changed_internals_are_told(monkeypatch, name):
    monkeypatch.delattr(pysm3.sky, name)
    with pytest.raises(ImportError, match=r"pysm3 3\.4"):
        register()


def test_import_loads_no_tensorflow():
    code = "import sys, pysm_vae; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
