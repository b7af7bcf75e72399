"""Make VAEDust and the presets known to PySM, which looks both up by name in ``pysm3.sky``."""

from __future__ import annotations

from importlib.resources import files

import pysm3.sky
import toml

from pysm_vae.dust import VAEDust


def presets() -> dict[str, dict]:
    """The presets of this package, by name, as PySM takes them."""
    return toml.loads((files("pysm_vae") / "presets.toml").read_text())


def register() -> None:
    """Add :class:`VAEDust` and the presets to PySM; calling it again changes nothing.

    PySM resolves ``class = "Name"`` among the names of the module ``pysm3.sky`` and preset strings
    in its dictionary ``PRESET_MODELS``. It has no entry points, so both are set from here.

    Raises
    ------
    ImportError
        If PySM's internals have changed, or the names are taken by something else.
    """
    known = getattr(pysm3.sky, "PRESET_MODELS", None)
    if not isinstance(known, dict) or not hasattr(pysm3.sky, "create_components_from_config"):
        raise ImportError(
            f"PySM {pysm3.__version__} keeps its presets elsewhere than this version of pysm_vae "
            "expects: install pysm3 3.4, or a newer pysm_vae"
        )
    if getattr(pysm3.sky, "VAEDust", VAEDust) is not VAEDust:
        raise ImportError("pysm3.sky already has another VAEDust: import only one pysm_vae")
    for name, preset in presets().items():
        if known.get(name, preset) != preset:
            raise ImportError(
                f"PySM already has another preset {name!r}: update pysm_vae, or rename that one"
            )
        known[name] = preset
    pysm3.sky.VAEDust = VAEDust
