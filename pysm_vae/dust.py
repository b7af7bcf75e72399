"""``VAEDust``, the PySM component: the only room that knows PySM's class contract."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import healpy as hp
import numpy as np
import pysm3
import pysm3.units as u

from pysm_vae.sky.canvas import Between
from pysm_vae.sky.constraint import Constraint, load_constraint
from pysm_vae.sky.parameters import BOUNDS, ParameterScales, bounded, neutral_shift
from pysm_vae.sky.sed import emission
from pysm_vae.sky.smallscales import SmallScales, Spectrum
from pysm_vae.sky.templates import SPLIT, Template, from_log_pol_tens, load_template
from pysm_vae.vae.generator import load_generator, one_thread_an_operation

log = logging.getLogger(__name__)

#: Planck 2018 XI (A&A 641, A11): the mean of the polarised dust's spectral index, at the
#: temperature of the mean modified blackbody at high latitude.
BETA = 1.53
TEMPERATURE = 19.6
#: D_ℓ slope of the small scales of β and T: a choice, as no map shows them. That of intensity.
PARAMETER_SLOPE = -0.8

#: The template must hand over before this multipole: large scales are kept as harmonics.
HIGHEST_SPLIT = 1000.0


class VAEDust(pysm3.Model):
    r"""Galactic dust with small scales drawn from a variational autoencoder trained on Planck.

    The template's large scales are kept; above a split multipole they hand over to what the
    generator draws, chart by chart, with a spectrum that continues the template's. Both are added
    as the logarithm of the polarisation tensor, so :math:`I > 0` and :math:`P < I` everywhere and
    small scales grow with the emission they sit on. Frequencies scale as a modified blackbody.

    A sky is (seed, weights, template): the same on any set of pixels, on any number of processes.

    Parameters
    ----------
    nside : int
        HEALPix resolution of the output.
    template : str, path or Quantity of shape (3, npix)
        Large scales: ``"embedded"`` (offline; a stand-in, not for science), a PySM dust preset such
        as ``"d10"``, a FITS file of I, Q, U, or such maps; see
        :func:`pysm_vae.sky.templates.load_template`.
    weights : str or path
        ``"default"``, ``"octave"``, ``"thorne2021"``, or the model card of your own training.
    seed : int
        Which sky.
    towards : int, optional
        Seed of another sky, to which a path of skies leads. Each of them has the statistics of all
        skies: their latents are turned from one's to the other's, as
        :class:`pysm_vae.sky.canvas.Between` says.
    fraction : float
        How far along that path: 0 for the one sky, 1 for the other, to the last bit.
    beta : float, path or Quantity
        Spectral index of the dust: one number or a HEALPix map (RING, Galactic).
    temperature : float, str, path or Quantity
        Dust temperature, in kelvin if it has no unit: one number or a HEALPix map.
    freq_ref : str or Quantity
        Frequency at which the template is given, and the reference of the modified blackbody.
    max_nside : int, optional
        Highest nside that makes sense. Default: that of the finest patches the weights give
        (8192 for ``octave``, 512 for ``thorne2021``).
    num : int, optional
        Number of a realisation, as ``mapsims`` passes it; added to the seed.
    map_dist : pysm3.MapDistribution, optional
        A partial sky, or this process's share of the pixels.
    beta_scatter, temperature_scatter : float
        Standard deviations of small scales added to β, and to T in kelvin; that of all scales, of
        which a map shows what its pixels resolve. 0, the default, for none. They set in where the
        dust's do, are independent of each other and of the dust, stay within five standard
        deviations, and make frequencies decorrelate. β is shifted a little, so that they do not
        brighten the mean sky (:func:`pysm_vae.sky.parameters.neutral_shift`).
    parameter_slope : float
        Slope of their D_ℓ, below 0.
    parameter_seed : int, optional
        Of these fluctuations; by default that of the sky.
    polarised : bool
        If not, Q and U are zero; the intensity is the same.
    slopes, ee_to_bb, te_ratio, te_slope, amplitude
        The small scales' spectra; see :class:`pysm_vae.sky.smallscales.Spectrum`.
    split : (float, float)
        Multipoles between which the template hands over to the small scales.
    constrain : str, path, Quantity or ndarray of shape (npix,), optional
        A map of intensity that the sky follows where it is observed: a HEALPix FITS file in any
        ordering and coordinates, of all of the sky or a part, or an array (RING, Galactic; NaN or
        UNSEEN where there are no data). Elsewhere the sky is left as it is, to the last bit; the
        map takes over within two degrees inside of the
        boundary (where it differs from the template on large scales, within up to ten), without a
        seam. What it does not resolve, or loses in its noise, stays random. Q and U keep their
        fractions of the intensity. See :mod:`pysm_vae.sky.constraint`.
    constrain_mask : str, path or ndarray of shape (npix,), optional
        Where: a disc (``"120,-30,5"``: Galactic longitude, latitude, radius in degrees), a FITS
        mask, or an array; by default wherever the map has a value.
    constrain_noise : float, str or Quantity
        Standard deviation of the noise of its pixels: as a part of the intensity, or in a unit.
    constrain_fwhm : float, str or Quantity
        Its beam, in arcmin if it has no unit.
    constrain_unit : str, optional
        Its unit, if the header says none or another one; ``"relative"`` for what is but
        proportional to the intensity. A brightness is that at ``freq_ref``.
    progress : callable, optional
        Told (charts drawn, charts in all) during the draw. Python only.

    Attributes
    ----------
    I_ref, Q_ref, U_ref : Quantity, float32, shape (npix,)
        Maps at the reference frequency, µK_RJ.
    mbb_index, mbb_temperature : Quantity
        Spectral index and temperature; float32 maps where small scales were added.
    freq_ref_I, freq_ref_P : Quantity
        Reference frequencies, GHz.
    constraint : pysm_vae.sky.constraint.Constraint or None
        What makes it follow a map.
    lmax : float
        Multipole up to which the small scales keep their spectrum: 1.9 nside, or less where the
        weights' patches end.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError, ConnectionError
        If an argument cannot be used. The message names it and the remedy, and all arguments are
        checked before the sky is drawn.
    """

    def __init__(
        self,
        nside: int,
        *,
        template: str | Path | u.Quantity = "embedded",
        weights: str | Path = "default",
        seed: int = 0,
        towards: int | None = None,
        fraction: float = 0.0,
        beta: float | str | Path | u.Quantity = BETA,
        temperature: float | str | Path | u.Quantity = TEMPERATURE,
        beta_scatter: float = 0.0,
        temperature_scatter: float | str | u.Quantity = 0.0,
        parameter_slope: float = PARAMETER_SLOPE,
        parameter_seed: int | None = None,
        freq_ref: str | u.Quantity = "353 GHz",
        polarised: bool = True,
        max_nside: int | None = None,
        num: int | None = None,
        map_dist: pysm3.MapDistribution | None = None,
        slopes: tuple[float, float, float] = Spectrum.slopes,
        ee_to_bb: float = Spectrum.ee_to_bb,
        te_ratio: float = Spectrum.te_ratio,
        te_slope: float = Spectrum.te_slope,
        amplitude: float = Spectrum.amplitude,
        split: tuple[float, float] = SPLIT,
        constrain: str | Path | u.Quantity | np.ndarray | None = None,
        constrain_mask: str | Path | np.ndarray | None = None,
        constrain_noise: float | str | u.Quantity = 0.01,
        constrain_fwhm: float | str | u.Quantity = 0.0,
        constrain_unit: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        nside = _whole("nside", nside, 1)
        if not hp.isnsideok(nside, nest=True):
            raise ValueError(f"nside must be a power of two, not {nside}")
        seed = _whole("seed", seed, 0) + (0 if num is None else _whole("num", num, 0))
        place = _place(seed, towards, fraction)
        if not isinstance(polarised, bool):
            raise TypeError(f"polarised must be true or false, not {polarised!r}")
        split = _split(split)
        if map_dist is not None and not isinstance(map_dist, pysm3.MapDistribution):
            raise TypeError(f"map_dist must be a pysm3.MapDistribution, not {map_dist!r}")
        spectrum = Spectrum(tuple(slopes), ee_to_bb, te_ratio, te_slope, amplitude)  # type: ignore[arg-type]
        generator = load_generator(weights)
        if max_nside is None:
            max_nside = 8192 if generator.conditional else 512
        super().__init__(
            nside=nside,
            max_nside=_whole("max_nside", max_nside, 1),
            map_dist=map_dist,
        )
        self.seed = seed
        self.generator = generator
        self.freq_ref_I = self.freq_ref_P = _frequency(freq_ref)
        pixels = None if map_dist is None else self._pixels()
        self.mbb_index = self._parameter("beta", beta, "", (-10.0, 10.0))
        self.mbb_temperature = self._parameter("temperature", temperature, "K", (0.0, 1000.0))
        scatter = np.array(
            [
                _scatter("beta", beta_scatter, "", self.mbb_index + 10),
                _scatter("temperature", temperature_scatter, "K", self.mbb_temperature),
            ]
        )
        parameters = None
        if scatter.any():
            parameters = ParameterScales(
                generator,
                seed=place
                if parameter_seed is None
                else _whole("parameter_seed", parameter_seed, 0),
                nside=nside,
                slope=parameter_slope,
                split=split,
            )
        self.template: Template = load_template(template, freq_ref=self.freq_ref_I, split=split)
        self.constraint: Constraint | None = None
        if constrain is not None:
            self.constraint = load_constraint(
                constrain,
                self.template,
                mask=constrain_mask,
                noise=constrain_noise,
                fwhm=constrain_fwhm,
                unit=constrain_unit,
                freq_ref=self.freq_ref_I,
            )
        elif constrain_mask is not None or constrain_unit is not None:
            raise ValueError("constrain_mask and constrain_unit are of a map: give constrain, too")

        def small_scales(nside: int) -> SmallScales:
            return SmallScales(
                generator, self.template, seed=place, nside=nside, spectrum=spectrum, split=split
            )

        one_thread_an_operation()
        small = small_scales(nside)
        self.lmax = small.lmax
        if self.lmax < 1.5 * nside:
            log.warning(
                "the small scales of weights %r end at l = %d, where nside %d could show more",
                generator.name,
                self.lmax,
                nside,
            )
        # Half the memory; the emission is computed, and returned, in double precision.
        stages = _stages(progress, 1 if parameters is None else 2)
        fields = small.draw(pixels, stages[0])
        if self.constraint is not None:
            self.constraint.add(
                fields,
                nside=nside,
                pixels=pixels,
                seed=place,
                draw=lambda level, where: small_scales(level).draw(where),
            )
        self._reference = from_log_pol_tens(fields, overwrite=True)
        if not polarised:
            self._reference[1:] = 0.0
        if parameters is not None:
            drawn = bounded(parameters.draw(pixels, stages[1]))
            shift = neutral_shift(
                *scatter,
                temperature=float(np.median(self.mbb_temperature.to_value(u.K))),
                freq_ref=self.freq_ref_I,
            )
            self.mbb_index = _varied(self.mbb_index + shift, scatter[0] * drawn[0])
            self.mbb_temperature = _varied(self.mbb_temperature, scatter[1] * drawn[1])

    def __repr__(self) -> str:
        parts = f"weights={self.generator.name!r}, template={self.template.name!r}"
        return f"VAEDust(nside={self.nside}, seed={self.seed}, {parts})"

    @property
    def I_ref(self) -> u.Quantity:
        """Intensity at the reference frequency, µK_RJ."""
        return self._reference[0] << u.uK_RJ

    @property
    def Q_ref(self) -> u.Quantity:
        """Stokes Q at the reference frequency, µK_RJ, COSMO convention."""
        return self._reference[1] << u.uK_RJ

    @property
    def U_ref(self) -> u.Quantity:
        """Stokes U at the reference frequency, µK_RJ, COSMO convention."""
        return self._reference[2] << u.uK_RJ

    @u.quantity_input
    def get_emission(self, freqs: u.Quantity[u.GHz], weights: Any = None) -> u.Quantity[u.uK_RJ]:
        """Emission at one frequency, or integrated over a bandpass, as PySM's own models give it.

        Parameters
        ----------
        freqs : Quantity
            One frequency, or those of a bandpass.
        weights : array, optional
            The bandpass, in power units (Jy/sr), at each of them; a top-hat by default.

        Returns
        -------
        Quantity, float64, shape (3, npix)
            I, Q, U in µK_RJ, in a new array at every call.
        """
        output = emission(
            self._reference,
            freqs,
            weights,
            freq_ref_I=self.freq_ref_I,
            freq_ref_P=self.freq_ref_P,
            beta=self.mbb_index.value,
            temperature=self.mbb_temperature.to_value(u.K),
        )
        return output << u.uK_RJ

    def _pixels(self) -> np.ndarray:
        npix = hp.nside2npix(self.nside)
        indices = None if self.map_dist is None else self.map_dist.pixel_indices
        if indices is None:
            return np.arange(npix)
        indices = np.asarray(indices)
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise TypeError("map_dist.pixel_indices must be a list of whole numbers")
        if len(indices) and not (indices.min() >= 0 and indices.max() < npix):
            raise ValueError(
                f"map_dist.pixel_indices leave the {npix} pixels of nside {self.nside}"
            )
        return indices.astype(np.int64)

    def _parameter(
        self, name: str, value: Any, unit: str, bounds: tuple[float, float]
    ) -> u.Quantity:
        """A number or a map of a spectral parameter, checked, on this object's pixels."""
        if isinstance(value, str | Path) and Path(value).suffix in (".fits", ".gz", ".fz"):
            try:
                value = self.read_map(str(value), unit=unit)
            except OSError as error:
                raise FileNotFoundError(
                    f"{name}: there is no map {str(value)!r} here, nor in PYSM_LOCAL_DATA, nor on "
                    f"PySM's server as far as it can be reached ({error})"
                ) from error
        elif isinstance(value, u.Quantity) and value.ndim and self.map_dist is not None:
            pixels = self._pixels()
            value = value[pixels] if value.shape == (hp.nside2npix(self.nside),) else value
        try:
            quantity = u.Quantity(value)
            if isinstance(value, bool) or quantity.value.dtype.kind != "f":
                raise TypeError("that is no real number")
            if quantity.unit == u.dimensionless_unscaled:
                quantity = quantity.value * u.Unit(unit)
            quantity = quantity.to(u.Unit(unit))
        except (TypeError, ValueError, u.UnitsError) as error:
            raise ValueError(
                f"{name} must be a number, a FITS map or a Quantity"
                f"{f' in {unit}' if unit else ' without unit'}, not {value!r} ({error})"
            ) from error
        low, high = bounds
        if not np.all((quantity.value > low) & (quantity.value < high)):
            raise ValueError(
                f"{name} must be finite and lie between {low:g} and {high:g} "
                f"{unit or 'everywhere'}, not {value!r}"
            )
        npix = len(self._pixels())
        if quantity.ndim and quantity.shape != (npix,):
            raise ValueError(
                f"{name} has shape {quantity.shape}: give one number, or a map of nside "
                f"{self.nside} ({npix} pixels here)"
            )
        return quantity


def _whole(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, not {value!r}")
    return int(value)


def _place(seed: int, towards: Any, fraction: Any) -> int | Between:
    """The sky of a seed, or one on the path to another seed's."""
    number = isinstance(fraction, int | float | np.number) and not isinstance(fraction, bool)
    if not (number and 0 <= fraction <= 1):
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction!r}")
    if towards is None:
        if fraction:
            raise ValueError(
                f"fraction={fraction} is the place on the path to another sky: give its seed, "
                "towards, too"
            )
        return seed
    towards = _whole("towards", towards, 0)
    # On the way to itself a sky would lose its scale: its latents are not independent of its own.
    if fraction == 0 or towards == seed:
        return seed
    return towards if fraction == 1 else Between(seed, towards, float(fraction))


def _scatter(name: str, value: Any, unit: str, room: u.Quantity) -> np.float32:
    """A standard deviation of small scales, checked against the room that they have."""
    try:
        quantity = u.Quantity(value)
        if quantity.unit == u.dimensionless_unscaled:
            quantity = quantity.value * u.Unit(unit)
        number = float(quantity.to_value(u.Unit(unit)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}_scatter must be one number{f' in {unit}' if unit else ''}, not {value!r}"
        ) from error
    most = float(room.value.min()) / BOUNDS[1]
    if not 0 <= number < most:
        raise ValueError(
            f"{name}_scatter must lie between 0 and {most:g}, so that {name} keeps within its "
            f"bounds {BOUNDS[1]:g} standard deviations away; got {value!r}"
        )
    return np.float32(number)


def _varied(parameter: u.Quantity, fluctuations: np.ndarray) -> u.Quantity:
    """A number or a map with fluctuations, as a map in single precision."""
    return (np.asarray(parameter.value, np.float32) + fluctuations) << parameter.unit


def _stages(
    progress: Callable[[int, int], None] | None, number: int
) -> list[Callable[[int, int], None] | None]:
    """Tell of the draws of several things, one after the other, as of one."""
    if progress is None:
        return [None] * number

    def told(stage: int) -> Callable[[int, int], None]:
        return lambda done, total: progress(stage * total + done, number * total)

    return [told(stage) for stage in range(number)]


def _split(value: Any) -> tuple[float, float]:
    try:
        low, high = (float(each) for each in value)
    except (TypeError, ValueError):
        low = high = np.nan
    if not 0 < low < high <= HIGHEST_SPLIT:
        raise ValueError(
            f"split must be two multipoles that rise, up to {HIGHEST_SPLIT:g}, not {value!r}"
        )
    return low, high


def _frequency(value: str | u.Quantity) -> u.Quantity:
    try:
        frequency = u.Quantity(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"freq_ref must be a frequency such as '353 GHz', not {value!r}"
        ) from error
    known = frequency.unit.physical_type == "frequency" and frequency.isscalar
    if not known or not 0 < frequency.value < np.inf:
        raise ValueError(f"freq_ref must be a frequency such as '353 GHz', not {value!r}")
    return frequency.to(u.GHz)
