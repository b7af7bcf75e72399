"""Large scales of the dust sky, as smooth fields in log-pol-tens space.

Maps are HEALPix RING, Galactic, COSMO polarisation convention, µK_RJ at the reference frequency
(353 GHz unless said otherwise). A :class:`Template` holds the harmonic coefficients of the three
log-pol-tens fields; adding small scales to those fields and going back keeps I > 0 and P < I.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import ducc0
import healpy as hp
import numba
import numpy as np
import pysm3
import pysm3.units as u

from pysm_vae.files import data_path, file_stamp
from pysm_vae.mapfiles import read_healpix
from pysm_vae.sky.sed import emission
from pysm_vae.threads import over

log = logging.getLogger(__name__)

#: Multipoles between which the template hands over to the small scales.
SPLIT = (50.0, 100.0)

#: Where a template's maps are given unless it says otherwise.
FREQ_REF = 353 * u.GHz

# Which rows are of which spin: i or I alone, and q, u or Q, U together.
_SPINS = ((slice(0, 1), 0), (slice(1, 3), 2))
# Finer maps are averaged to this before the logarithm that starts the iteration, and the embedded
# template is unfolded to it.
_WORK_NSIDE = 128
_ITERATIONS = 8
# Each step divides by the intensity, but by its blurred version beside what is much brighter. By
# the intensity alone the iteration diverges there; with 4 degrees the residual falls tenfold in two
# steps, on the embedded template as on Planck-based maps.
_BLUR = np.radians(4.0)
# No single step changes ln I, or a polarisation fraction, by more than this: keeps the first steps
# stable beside the Galactic plane, where the residual is large and the intensity falls steeply.
_MAX_STEP = 0.5
# Presets are read far above the split, so that PySM's averaging of pixels does not reach it.
_PYSM_NSIDE = 512
# Positions handed to ducc at a time: bounds the memory of the (n, 2) array that it wants.
_CHUNK = 1 << 22


def taper(ell: np.ndarray, low: float = SPLIT[0], high: float = SPLIT[1]) -> np.ndarray:
    """Smooth low-pass window: 1 up to ``low``, 0 from ``high``, a quarter cosine in ln ℓ between.

    Parameters
    ----------
    ell : array-like
        Multipoles, not necessarily whole.
    low, high : float
        Where the window starts to fall and where it reaches zero, 0 < low < high.

    Returns
    -------
    ndarray
        cos(π x/2), x = ln(ℓ/low)/ln(high/low) clipped to [0, 1].
    """
    if not 0 < low < high < np.inf:
        raise ValueError(f"the split must rise, 0 < low < high; got low={low}, high={high}")
    ell = np.maximum(np.asarray(ell, dtype=np.float64), low)
    x = np.minimum(np.log(ell / low) / np.log(high / low), 1.0)
    # sin of the complement gives an exact zero at the end, which cos(π/2) does not.
    return np.sin(0.5 * np.pi * (1.0 - x))


def handover(ell: np.ndarray, low: float = SPLIT[0], high: float = SPLIT[1]) -> np.ndarray:
    r"""Fraction of the input's amplitude that a :class:`Template` has, to be complemented.

    The iteration that makes a template starts from the tapered field, and each step gives back
    :math:`t^2` of what is missing, so that n steps leave :math:`1 - (1 - t)(1 - t^2)^n`: less is
    lost than to the taper alone, and it is lost faster. For the default split the power falls from
    98 to 4 % between ℓ = 75 and 95.

    Parameters
    ----------
    ell : array-like
        Multipoles, not necessarily whole.
    low, high : float
        The ends of :func:`taper`.
    """
    t = taper(ell, low, high)
    return 1.0 - (1.0 - t) * (1.0 - t**2) ** _ITERATIONS


def to_log_pol_tens(iqu: np.ndarray) -> np.ndarray:
    r"""I, Q, U to the logarithm of the polarisation tensor.

    .. math:: i = \tfrac12\ln(I^2-P^2), \quad
              (q, u) = \frac{(Q, U)}{P}\,\tfrac12\ln\frac{I+P}{I-P}

    (PySM 3 models paper, arXiv:2502.20452; unlike PySM's own function, also right at P = 0).

    Parameters
    ----------
    iqu : ndarray, shape (3, n)
        Stokes parameters in any one unit.

    Returns
    -------
    ndarray, shape (3, n)
        i (logarithm of the intensity in the unit given), q and u.

    Raises
    ------
    ValueError
        If I is not positive or not larger than P somewhere, with the number of bad pixels.
    """
    iqu = _three_rows(iqu)
    intensity = iqu[0]
    polarised = np.hypot(iqu[1], iqu[2])
    # Written so that NaN counts as bad.
    dark = np.count_nonzero(~(intensity > 0))
    if dark:
        raise ValueError(
            f"I is not positive in {dark} of {intensity.size} pixels, so it has no logarithm. "
            "Add the map's monopole, smooth it, or fill those pixels."
        )
    over = np.count_nonzero(~(intensity > polarised))
    if over:
        raise ValueError(
            f"the polarised intensity is not below I in {over} of {intensity.size} pixels. "
            "Smooth the map, or check that I, Q and U are in the same unit."
        )
    fraction = polarised / intensity
    small = fraction < 1e-4
    safe = np.where(small, 0.5, fraction)
    # arctanh(x)/x, by its series where the quotient would be 0/0.
    stretch = np.where(small, 1.0 + fraction**2 / 3.0, np.arctanh(safe) / safe) / intensity
    log_i = np.log(intensity) + 0.5 * np.log1p(-(fraction**2))
    return np.stack([log_i, iqu[1] * stretch, iqu[2] * stretch])


def from_log_pol_tens(fields: np.ndarray, *, overwrite: bool = False) -> np.ndarray:
    r"""Inverse of :func:`to_log_pol_tens`.

    .. math:: I = e^i\cosh p, \quad (Q, U) = \frac{(q, u)}{p}\,e^i\sinh p

    Parameters
    ----------
    fields : ndarray, shape (3, n)
        i, q, u.
    overwrite : bool
        Whether the result may take their place in memory.

    Returns
    -------
    ndarray, shape (3, n)
        I, Q, U; I > 0 and P < I whatever the fields. In single precision for such fields, to
        2e-6, else in double.
    """
    single = isinstance(fields, np.ndarray) and fields.dtype == np.float32
    fields = np.ascontiguousarray(fields if single else _three_rows(fields))
    # Compiled code has read a pixel before it writes it.
    maps = fields if overwrite else np.empty_like(fields)
    over(fields.shape[1], lambda start, stop: _exponential(start, stop, fields, maps))
    return maps


@numba.njit(cache=True, error_model="numpy", nogil=True)
def _exponential(start, stop, fields, maps):
    """I, Q, U of i, q, u."""
    for n in range(start, stop):
        q, u = float(fields[1, n]), float(fields[2, n])
        p = math.sqrt(q * q + u * u)
        scale, growth = math.exp(float(fields[0, n])), math.exp(p)
        cosh, sinh = 0.5 * (growth + 1.0 / growth), 0.5 * (growth - 1.0 / growth)
        # sinh(p)/p by its series where digits of the difference would be lost.
        stretch = scale * (sinh / p if p > 1e-3 else 1.0 + p * p / 6.0)
        maps[0, n] = scale * cosh
        maps[1, n] = q * stretch
        maps[2, n] = u * stretch


def _three_rows(maps: np.ndarray) -> np.ndarray:
    maps = np.asarray(maps, dtype=np.float64)
    if maps.ndim != 2 or maps.shape[0] != 3:
        raise ValueError(f"three maps of shape (3, n) are needed, not {maps.shape}")
    return maps


@dataclass(frozen=True, eq=False)
class Template:
    """Large scales: band-limited log-pol-tens fields that can be evaluated anywhere.

    Parameters
    ----------
    name : str
        What to call it in headers and messages.
    alm : ndarray, shape (3, nalm), complex128
        Harmonic coefficients (HEALPix order, mmax = lmax) of ``i`` (logarithm of µK_RJ) and of
        the E and B of (q, u) as a spin-2 field, COSMO convention.
    freq_ref : Quantity
        The frequency at which the maps are given.
    provenance : str
        Where the numbers come from.
    """

    name: str
    alm: np.ndarray = field(repr=False)
    freq_ref: u.Quantity = FREQ_REF
    provenance: str = ""

    def __post_init__(self) -> None:
        alm = np.array(self.alm, dtype=np.complex128)
        if alm.ndim != 2 or alm.shape[0] != 3 or hp.Alm.getlmax(alm.shape[1]) < 2:
            raise ValueError(
                f"alm must have shape (3, nalm) with nalm that of an lmax >= 2, not {alm.shape}"
            )
        if not np.isfinite(alm).all():
            raise ValueError(f"alm of the template {self.name!r} must be finite")
        # Templates are shared, so nobody may write into one.
        alm.flags.writeable = False
        object.__setattr__(self, "alm", alm)

    @property
    def lmax(self) -> int:
        """Highest multipole of the fields."""
        return hp.Alm.getlmax(self.alm.shape[1])

    def fields(self, theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
        """Log-pol-tens fields at any positions.

        A position's values do not depend, to the last bit, on which others are asked for.

        Parameters
        ----------
        theta, phi : ndarray, shape (n,)
            Galactic colatitude and longitude in radians.

        Returns
        -------
        ndarray, shape (3, n)
            i, q, u, accurate to 1e-10 of their range.
        """
        theta = np.atleast_1d(np.asarray(theta, dtype=np.float64))
        phi = np.atleast_1d(np.asarray(phi, dtype=np.float64))
        if theta.ndim != 1 or theta.shape != phi.shape:
            raise ValueError(f"theta {theta.shape} and phi {phi.shape} must be one list each")
        return np.concatenate(
            [evaluated(self.alm[rows], spin, theta, phi) for rows, spin in _SPINS]
        )

    def maps(self, nside: int) -> np.ndarray:
        """I, Q, U of the large scales on a full sky.

        Parameters
        ----------
        nside : int
            HEALPix resolution.

        Returns
        -------
        ndarray, shape (3, 12 nside²)
            µK_RJ at ``freq_ref``, RING.
        """
        fields = self.fields(*hp.pix2ang(nside, np.arange(hp.nside2npix(nside))))
        return from_log_pol_tens(fields)

    @classmethod
    def from_maps(
        cls,
        iqu: np.ndarray,
        *,
        name: str,
        split: tuple[float, float] = SPLIT,
        freq_ref: u.Quantity = FREQ_REF,
        coord: str = "G",
        provenance: str = "",
    ) -> Template:
        r"""Band-limited log fields whose *exponential* has the low multipoles of the input.

        exp(low-pass(ln I)) is not low-pass(I), so the low-passed logarithm is only the start of a
        fixed-point iteration. Each step adds to the fields (t is :func:`taper`, in harmonic space)

        .. math:: \delta(i, q, u) = t * \frac{t * (X_{in} - X_{now})}{\max(I_{now}, G*I_{now})},
                  \quad X = I, Q, U

        which is Newton's step with its operator approximated by multiplication with I. The
        Gaussian blur G keeps it stable beside bright regions.

        Parameters
        ----------
        iqu : ndarray, shape (3, npix)
            I, Q, U in µK_RJ at ``freq_ref``, HEALPix RING, COSMO convention.
        name : str
            What to call the template.
        split : (float, float)
            The taper's ends; the fields end at the second.
        freq_ref : Quantity
            The frequency of the maps.
        coord : {"G", "C", "E"}
            Coordinates of the maps; other than Galactic ones are rotated, in harmonic space.
        provenance : str
            Where the maps come from.

        Returns
        -------
        Template

        Raises
        ------
        ValueError
            If the maps are not three full-sky HEALPix maps that reach the split, have unseen or
            not finite pixels, or have I <= P anywhere.
        """
        iqu = _three_rows(iqu)
        window = taper(np.arange(int(np.ceil(split[1])) + 1), *split)
        lmax = window.size - 1
        npix = iqu.shape[1]
        if not hp.isnpixok(npix):
            raise ValueError(
                f"the template {name!r} has {npix} pixels, which no full-sky HEALPix map has"
            )
        nside = hp.npix2nside(npix)
        if 3 * nside - 1 < lmax:
            raise ValueError(
                f"the template {name!r} has nside {nside}, too coarse to give multipoles up to "
                f"{lmax}: give it at nside {_nside_for(lmax)} or finer"
            )
        bad = np.count_nonzero(~np.isfinite(iqu) | hp.mask_bad(iqu))
        if bad:
            raise ValueError(
                f"the template {name!r} has {bad} NaN, infinite or UNSEEN values: fill them first"
            )
        if coord not in ("G", "C", "E"):
            raise ValueError(f"coordinates must be 'G', 'C' or 'E', not {coord!r}")

        start = to_log_pol_tens(iqu)
        if nside > _WORK_NSIDE:
            # Averages of pixels keep I > P. They also smooth, but this is only the start.
            start = to_log_pol_tens(np.array(hp.ud_grade(iqu, _WORK_NSIDE)))
        fields_alm = _filtered(start, window)
        target = _filtered(iqu, window)
        if coord != "G":
            rotator = hp.Rotator(coord=[coord, "G"])
            fields_alm = np.array(rotator.rotate_alm(fields_alm))
            target = np.array(rotator.rotate_alm(target))

        blur = hp.gauss_beam(_BLUR, lmax=lmax)
        for _ in range(_ITERATIONS):
            now = from_log_pol_tens(_to_grid(fields_alm))
            now_alm = _from_grid(now, lmax)
            missing = _to_grid(target - _multiplied(now_alm, window))
            # Only row 0, the intensity, is of use.
            blurred = _to_grid(_multiplied(now_alm, blur))[0]
            step = np.clip(missing / np.maximum(now[0], blurred), -_MAX_STEP, _MAX_STEP)
            fields_alm = fields_alm + _multiplied(_from_grid(step, lmax), window)
        return cls(name=name, alm=fields_alm, freq_ref=freq_ref, provenance=provenance)


def evaluated(alm: np.ndarray, spin: int, theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    """Field of harmonic coefficients at any positions.

    A position's values do not depend, to the last bit, on which others are asked for.

    Parameters
    ----------
    alm : ndarray, shape (1, nalm) or (2, nalm)
        HEALPix order; two for spin 2.
    spin : int
        0 or 2.
    theta, phi : ndarray, shape (n,)
        Colatitude and longitude in radians.

    Returns
    -------
    ndarray, shape (1, n) or (2, n)
        Accurate to 1e-10 of its range.
    """
    result = np.empty((len(alm), theta.size))
    for start in range(0, theta.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        result[:, part] = ducc0.sht.synthesis_general(
            alm=alm,
            loc=np.stack([theta[part], phi[part]], axis=1),
            spin=spin,
            lmax=hp.Alm.getlmax(alm.shape[1]),
            # Left to itself, ducc chooses grid and kernel by the number of positions, and a
            # pixel's value would depend on how many others are asked for.
            sigma_min=2.0,
            sigma_max=2.0,
            # As fast as 1e-7 at these few multipoles.
            epsilon=1e-11,
            # With two threads, which transform the grid in other groups, it has other last bits.
            nthreads=1,
        )
    return result


def _nside_for(lmax: int) -> int:
    return 1 << int(np.ceil(np.log2((lmax + 1) / 3)))


def _filtered(maps: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Harmonic coefficients of three HEALPix maps times a window, up to its end."""
    return _multiplied(np.array(hp.map2alm(maps, lmax=window.size - 1, iter=3, pol=True)), window)


def _multiplied(alm: np.ndarray, window: np.ndarray) -> np.ndarray:
    return np.array([hp.almxfl(row, window) for row in alm])


# The iteration runs on a Gauss-Legendre grid, where one analysis is exact and a tenth of the work
# of HEALPix's iterated one. The exponential is not band-limited, so the grid is twice as fine as
# the fields need: nothing below l = 3 lmax folds back into them.


def _to_grid(alm: np.ndarray) -> np.ndarray:
    """Three maps (spins 0 and 2) of shape (3, n) from their coefficients."""
    lmax = hp.Alm.getlmax(alm.shape[1])
    shape = {"lmax": lmax, "ntheta": 2 * lmax + 2, "nphi": 4 * lmax + 4, "geometry": "GL"}
    maps = [
        ducc0.sht.synthesis_2d(alm=alm[rows], spin=spin, nthreads=0, **shape)
        for rows, spin in _SPINS
    ]
    return np.concatenate(maps).reshape(3, -1)


def _from_grid(maps: np.ndarray, lmax: int) -> np.ndarray:
    """Inverse of :func:`_to_grid`."""
    maps = maps.reshape(3, 2 * lmax + 2, 4 * lmax + 4)
    alm = [
        ducc0.sht.analysis_2d(map=maps[rows], spin=spin, lmax=lmax, geometry="GL", nthreads=0)
        for rows, spin in _SPINS
    ]
    return np.concatenate(alm)


def load_template(
    spec: str | Path | u.Quantity,
    *,
    freq_ref: u.Quantity = FREQ_REF,
    split: tuple[float, float] = SPLIT,
) -> Template:
    """Large scales from wherever the user has them.

    Parameters
    ----------
    spec : str, Path or Quantity
        One of

        - ``"embedded"``: the shipped template, which needs no network. It is a stand-in: Planck
          2013 reddening for the intensity, a simple model of the field for the polarisation. Use a
          map or a PySM preset for science.
        - the name of a PySM dust preset with a modified blackbody, such as ``"d10"`` or ``"d1"``.
          Its own index and temperature bring it to ``freq_ref``.
        - the path of a FITS file with I, Q, U as ``healpy.write_map`` makes it: any ordering,
          coordinates, nside and polarisation convention; the unit in the header.
        - an in-memory Quantity of shape (3, npix), RING, Galactic.

        Maps in K_CMB, K_RJ or MJy/sr (with any prefix) are converted to µK_RJ at ``freq_ref``.
    freq_ref : Quantity
        For maps: the frequency they are given at, 353 GHz by convention.
    split : (float, float)
        See :func:`taper`.

    Returns
    -------
    Template

    Raises
    ------
    TypeError
        If ``spec`` is none of these, for example an array without a unit.
    ValueError
        If the name is unknown, or the maps cannot be used; the message names the remedy.
    FileNotFoundError
        If a path does not exist.
    ConnectionError
        If PySM cannot get the preset's maps.
    """
    low, high = split
    # A TOML file gives a list, which no cache takes.
    split = low, high
    if isinstance(spec, u.Quantity):
        return Template.from_maps(
            to_uK_RJ(spec, freq_ref),
            name="in-memory map",
            split=split,
            freq_ref=freq_ref,
            provenance="an in-memory map",
        )
    if isinstance(spec, np.ndarray | list | tuple):
        raise TypeError(
            "an in-memory template must be a Quantity of shape (3, npix), "
            "for example maps * pysm3.units.uK_RJ"
        )
    if not isinstance(spec, str | Path):
        raise TypeError(
            f"a template is a name, a path or a Quantity of shape (3, npix), not {spec!r}"
        )
    if spec == "embedded":
        return _embedded_large_scales(split)
    presets = pysm_presets()
    # Read once, so that all skies of a process share what is worked out for a template.
    if spec in presets:
        return _from_pysm(str(spec), _hashable(freq_ref), split)
    if Path(spec).is_file():
        return _from_file(file_stamp(spec), _hashable(freq_ref), split)
    message = (
        f"template {str(spec)!r}: there is no such file, and no preset of that name. "
        f"Choose one of embedded, {', '.join(presets)}, or give the path of an I, Q, U map."
    )
    is_path = isinstance(spec, Path) or "/" in spec or ".fits" in spec
    raise FileNotFoundError(message) if is_path else ValueError(message)


def pysm_presets() -> list[str]:
    """Names of the PySM presets that can be a template: dust with one modified blackbody."""
    usable = (
        "ModifiedBlackBody",
        "DecorrelatedModifiedBlackBody",
        "ModifiedBlackBodyRealization",
    )
    return [name for name, model in pysm3.sky.PRESET_MODELS.items() if model.get("class") in usable]


def embedded_template() -> Template:
    """Give the shipped template with all its multipoles, as it was before the split.

    ``load_template("embedded")`` is what a sky is built from; this one goes on to ℓ = 128 and shows
    the spectra that the small scales have to continue.

    Returns
    -------
    Template
    """
    with np.load(data_path("template.npz"), allow_pickle=False) as stored:
        alm = stored["alm"].astype(np.complex128)
        provenance = json.loads(str(stored["provenance"]))
    return Template(
        name="embedded",
        alm=alm,
        freq_ref=u.Quantity(provenance["freq_ref"]),
        provenance=provenance["summary"],
    )


@lru_cache(maxsize=4)
def _embedded_large_scales(split: tuple[float, float]) -> Template:
    full = embedded_template()
    return Template.from_maps(
        full.maps(_WORK_NSIDE),
        name=full.name,
        split=split,
        freq_ref=full.freq_ref,
        provenance=full.provenance,
    )


def _hashable(freq_ref: u.Quantity) -> float:
    return freq_ref.to_value(u.GHz).item()


@lru_cache(maxsize=4)
def _from_pysm(name: str, freq_ghz: float, split: tuple[float, float]) -> Template:
    freq_ref = freq_ghz * u.GHz
    try:
        sky = pysm3.Sky(nside=_PYSM_NSIDE, preset_strings=[name])
    except OSError as error:
        raise ConnectionError(
            f"PySM's server was not reached for the maps of {name!r} ({error}). "
            "Go online, set PYSM_LOCAL_DATA to a folder that has them, "
            'or use template="embedded", which needs no network.'
        ) from error
    model = sky.components[0]
    maps = emission(
        np.stack([model.I_ref.value, model.Q_ref.value, model.U_ref.value]),
        freq_ref,
        freq_ref_I=model.freq_ref_I,
        freq_ref_P=model.freq_ref_P,
        beta=model.mbb_index.value,
        temperature=model.mbb_temperature.to_value(u.K),
    )
    return Template.from_maps(
        maps,
        name=name,
        split=split,
        freq_ref=freq_ref,
        provenance=f"PySM {pysm3.__version__} preset {name}, at nside {_PYSM_NSIDE}",
    )


@lru_cache(maxsize=4)
def _from_file(
    stamp: tuple[str, int, int], freq_ghz: float, split: tuple[float, float]
) -> Template:
    path, freq_ref = Path(stamp[0]), freq_ghz * u.GHz
    read = read_healpix(path, "template")
    if len(read.maps) < 3:
        raise ValueError(
            f"template {str(path)!r} has {len(read.maps)} maps ({', '.join(read.columns)}), where "
            "I, Q and U are needed, as healpy.write_map writes them"
        )
    if read.pixels is not None:
        raise ValueError(
            f"template {str(path)!r} is a partial map: large scales are needed on all of the sky"
        )
    coord = read.coordinates
    if not coord:
        log.warning("%s has no COORDSYS in its header: taken as Galactic", path)
        coord = "G"
    rows = []
    maps = hp.reorder(read.maps, n2r=True) if read.nest else read.maps
    for number, (row, text) in enumerate(zip(maps, read.units, strict=True), start=1):
        try:
            rows.append(to_uK_RJ(u.Quantity(row, map_unit(text)), freq_ref))
        except u.UnitsError as error:
            key = f"TUNIT{number}"
            raise ValueError(f"template {str(path)!r}, {key} = {text!r}: {error}") from error
    convention = str(read.header.get("POLCCONV", "COSMO")).strip().upper()
    if convention not in ("COSMO", "IAU", ""):
        raise ValueError(
            f"template {str(path)!r}, POLCCONV = {convention!r}: it must be COSMO or IAU, or the "
            "sign of U is not known"
        )
    if convention == "IAU":
        # COSMO's U has the other sign.
        rows[2] = -rows[2]
    return Template.from_maps(
        np.stack(rows),
        name=path.name,
        split=split,
        freq_ref=freq_ref,
        coord=coord,
        provenance=f"the file {path.name}",
    )


def map_unit(text: str) -> u.UnitBase:
    """Unit that a FITS header says; one that is unlike any other if it is no unit."""
    # The Planck archive writes K_CMB in several ways.
    text = text.strip().replace("Kcmb", "K_CMB").replace("KCMB", "K_CMB")
    return u.Unit(text, parse_strict="silent")


def to_uK_RJ(maps: u.Quantity, freq_ref: u.Quantity, what: str = "a template") -> np.ndarray:
    """Maps of brightness in µK_RJ.

    Parameters
    ----------
    maps : Quantity
        In K_CMB, K_RJ or MJy/sr, or multiples of these; any shape.
    freq_ref : Quantity
        Their frequency.
    what : str
        What messages call them.

    Raises
    ------
    UnitConversionError
        If the unit is no brightness.
    """
    # A plain K is no brightness: astropy might let it pass for any of the two temperatures.
    if maps.unit.physical_type == "temperature" or not maps.unit.is_equivalent(
        u.uK_RJ, equivalencies=u.cmb_equivalencies(freq_ref)
    ):
        raise u.UnitConversionError(
            f"the unit of {what} must be K_CMB, K_RJ or MJy/sr (or a multiple, such as uK_RJ), "
            f"not {str(maps.unit) or 'none'!r}. Multiply the map by its unit, or set TUNIT1-3 in "
            "its header."
        )
    return maps.to_value(u.uK_RJ, equivalencies=u.cmb_equivalencies(freq_ref))
