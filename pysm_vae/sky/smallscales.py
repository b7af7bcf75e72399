r"""Small scales on any HEALPix pixels: seeded patches, filtered tile by tile, laid on the sphere.

Each tile gets three patterns from the generator, T, E and B. In the Fourier plane of its chart they
are brought to power laws, high-passed above the split of the template, and turned into the frame's
Q and U; the projection does the rest. Nothing here transforms the whole sky, so a pixel depends
only on the tiles that cover it.

Filter
    A pattern whose mean power spectrum is :math:`C^{gen}_\ell` is multiplied by

    .. math:: \sqrt{C^{target}_\ell / C^{gen}_\ell}\; \sqrt{1 - t_\ell^2}\; b_\ell,
       \qquad \ell^2 C^{target}_\ell / 2\pi = (\ell/80)^\alpha

    with t the template's taper and b the cut below the chart's Nyquist frequency: the pattern has
    unit :math:`D_\ell` at the pivot, :math:`\ell = 80` (PySM's), and its amplitude is set by
    :func:`calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import healpy as hp
import numpy as np
import scipy.fft

from pysm_vae.sky.templates import SPLIT, Template, taper
from pysm_vae.sky.tiling import Tiling, bspline_prefilter_response
from pysm_vae.vae.generator import CHART_BLOCKS, Generator, draw_latents

#: HEALPix resolution of the tiles: 768 tiles, 7.3 degrees apart.
TILE_NSIDE = 8
#: The patterns are cut between these fractions of the chart's Nyquist frequency, where the cubic
#: spline still interpolates to a few per cent.
CUT = (0.62, 0.78)
#: A chart is fine enough if it holds the power up to this multiple of nside.
BAND_LIMIT = 2.0
#: Multipole at which amplitudes are quoted.
PIVOT = 80.0
#: Latitudes at which amplitudes are measured, degrees, and the width of the mask's edge.
LATITUDE = 30.0
APODISATION = 10.0
#: Multipoles below the split, and the resolution, on which the template's amplitude is measured.
CALIBRATION_ELL = (30, 50)
CALIBRATION_NSIDE = 64

FIELDS = ("T", "E", "B")


@dataclass(frozen=True)
class Spectrum:
    """What the small scales' spectra are asked to be.

    Parameters
    ----------
    slopes : (float, float, float)
        Of D_ℓ for TT, EE and BB. Defaults: Planck 2018 XI and PySM's d11.
    ee_to_bb : float
        Ratio of E to B power at the pivot (Planck 2018 XI: about 2).
    te_ratio : float
        Correlation of T and E, C^TE / sqrt(C^TT C^EE) (Planck 2018 XI: about 0.36).
    amplitude : float
        Factor on the amplitude of all small scales; 1 continues the template.
    """

    slopes: tuple[float, float, float] = (-0.80, -0.42, -0.54)
    ee_to_bb: float = 2.0
    te_ratio: float = 0.36
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        if len(self.slopes) != 3 or not all(-3.0 < slope < 3.0 for slope in self.slopes):
            raise ValueError(f"slopes are those of D_ell^TT, EE, BB, each within ±3: {self.slopes}")
        if not 0 < self.ee_to_bb < np.inf:
            raise ValueError(f"ee_to_bb must be positive, not {self.ee_to_bb}")
        if not -1 <= self.te_ratio <= 1:
            raise ValueError(f"te_ratio is a correlation, within ±1, not {self.te_ratio}")
        if not 0 <= self.amplitude < np.inf:
            raise ValueError(f"amplitude cannot be negative or infinite: {self.amplitude}")


class SmallScales:
    """Seeded small scales of the log-pol-tens fields.

    Parameters
    ----------
    generator : Generator
        Where the patches come from.
    template : Template
        The large scales; a conditional generator draws T for them.
    seed : int
        With the weights and the template, it decides the sky.
    nside : int
        Of the pixels; decides how fine the patches must be, not what they show.
    spectrum : Spectrum
        Slopes, EE/BB, TE and the amplitude.
    split : (float, float)
        Where the template hands over; see :func:`pysm_vae.sky.templates.taper`.
    """

    def __init__(
        self,
        generator: Generator,
        template: Template,
        *,
        seed: int,
        nside: int,
        spectrum: Spectrum | None = None,
        split: tuple[float, float] = SPLIT,
    ) -> None:
        self.generator = generator
        self.template = template
        self.seed = seed
        self.nside = nside
        self.spectrum = Spectrum() if spectrum is None else spectrum
        self.split = split
        # All charts of one generator share their outline, so that a coarser one shows the block
        # means of a finer one. The coarsest needs the widest margin.
        coarsest = Tiling(TILE_NSIDE, generator.charts[0][0])
        self._width = np.radians(coarsest.pixel_size / 60) * coarsest.size
        self.size, self.depth, self.power = self._chart()
        self.tiling = Tiling(TILE_NSIDE, self.size, np.degrees(self._width / self.size) * 60)
        if generator.conditional:
            self._blocks, self.roughness = self._condition()
        else:
            self.roughness = np.ones(self.tiling.ntiles)
        self.amplitudes = calibrate(template, self.spectrum, self._roughness_map())
        self._filters, self._rotation = self._make_filters()
        axis = np.abs(np.arange(self.size) - (self.size - 1) / 2) * self._width / self.size
        self._core = np.hypot(axis[:, None], axis) < 0.5 * hp.nside2resol(TILE_NSIDE)

    @property
    def lmax(self) -> float:
        """Multipole up to which the patterns keep their spectrum."""
        return CUT[0] * 180 * 60 / self.tiling.pixel_size

    def fields(
        self,
        pixels: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Draw the small scales on a set of pixels.

        Parameters
        ----------
        pixels : ndarray of int, optional
            RING pixels; all of the sky by default.
        progress : callable, optional
            Told (tiles drawn, tiles in all) as the work goes on.

        Returns
        -------
        ndarray, float64, shape (3, npix)
            What is to be added to i, q and u. A pixel's values do not depend on which other pixels
            are asked for.
        """
        if pixels is None:
            pixels = np.arange(hp.nside2npix(self.nside))
        fields = np.empty((3, len(pixels)))
        total = len(self.tiling.tiles_for(self.nside, pixels))
        held = _Tiles(self.size)
        drawn = 0
        for band in self._bands(pixels):
            needed = self.tiling.tiles_for(self.nside, pixels[band])
            # Neighbouring bands share tiles: keep those, draw the rest.
            fresh = np.setdiff1d(needed, held.ids)
            held = held.keep(needed).add(fresh, *self._draw(fresh))
            fields[:, band] = self.tiling.project(
                held.coefficients, self.nside, pixels[band], held.ids, held.offsets
            )
            drawn += len(fresh)
            if progress is not None:
                progress(drawn, total)
        return fields

    def _chart(self) -> tuple[int, int | None, np.ndarray]:
        """Size, octaves and mean power of the coarsest patches that are fine enough."""
        for chart in self.generator.card["spectra"]:
            lmax = CUT[0] * np.pi * chart["size"] / self._width
            if lmax >= BAND_LIMIT * self.nside:
                break
        return chart["size"], chart["depth"], np.array(chart["power"])

    def _bands(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Indices of the pixels, by bands of latitude about as wide as a tile."""
        if not len(pixels):
            return []
        z = hp.pix2vec(self.nside, pixels)[2]
        band = np.digitize(np.degrees(np.arcsin(z)), np.arange(-90.0, 90.0, 7.5))
        order = np.argsort(band, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(band[order])) + 1)

    def _draw(self, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Spline coefficients of T, Q and U on the charts of some tiles, and T's offsets."""
        patterns = np.empty((3, len(tiles), self.size, self.size), np.float32)
        if not len(tiles):
            return patterns, np.empty(0)
        shapes = self.generator.latent_shapes(self.size, self.depth)
        for number, field in enumerate(FIELDS):
            keys = [(self.seed, TILE_NSIDE, int(tile), number) for tile in tiles]
            latents = draw_latents(shapes, keys)
            if field == "T" and self.generator.conditional:
                # The large scales that are there take the place of the coarsest latents.
                patterns[number] = self.generator.decode(
                    latents[1:], self._blocks[tiles], beam=False
                )
            else:
                patterns[number] = self.generator.decode(latents, beam=False)
        return self._filter(patterns, self.roughness[tiles])

    def _filter(self, patterns: np.ndarray, roughness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bring T, E, B patches to their spectra, and to T, Q, U spline coefficients."""
        size = self.size
        coefficients = np.empty_like(patterns)
        offsets = np.empty(len(roughness))
        filters, (cosine, sine) = self._filters, self._rotation
        mix = self.spectrum.te_ratio
        for i, rough in enumerate(roughness):
            # A chart mirrored at its edges is periodic and has no steps there.
            mirrored = np.pad(patterns[:, i], ((0, 0), (0, size), (0, size)), mode="symmetric")
            t, e, b = scipy.fft.rfft2(mirrored, workers=-1)
            # T and E share a part of one pattern, each with its own slope.
            e = filters["E"] * (mix * t + np.sqrt(1 - mix**2) * e)
            b = filters["B"] * b
            t = filters["T"] * rough * t
            waves = np.stack([t, e * cosine - b * sine, e * sine + b * cosine])
            full = scipy.fft.irfft2(waves, s=(2 * size, 2 * size), workers=-1)
            coefficients[:, i] = full[:, :size, :size]
            offsets[i] = -np.log(np.mean(np.exp(_samples(coefficients[0, i])[self._core])))
        return coefficients, offsets

    def _make_filters(self) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Filters of T, E, B in the plane of the mirrored chart, and E, B to Q, U."""
        size, pixel = self.size, self._width / self.size
        ky = scipy.fft.fftfreq(2 * size)[:, None]
        kx = scipy.fft.rfftfreq(2 * size)[None, :]
        frequency = np.hypot(kx, ky)
        frequency[0, 0] = 1.0
        ell = 2 * np.pi * frequency / pixel
        # Power of the generator in sr at each mode, a power law between whole wavenumbers.
        known = np.arange(1, len(self.power) + 1) / size
        generated = pixel**2 * np.exp(
            np.interp(np.log(frequency), np.log(known), np.log(self.power))
        )
        cut = np.clip((ell * pixel / np.pi - CUT[0]) / (CUT[1] - CUT[0]), 0, 1)
        response = np.outer(
            bspline_prefilter_response(scipy.fft.fftfreq(2 * size)),
            bspline_prefilter_response(scipy.fft.rfftfreq(2 * size)),
        )
        common = np.sqrt(1 - taper(ell, *self.split) ** 2) * np.cos(0.5 * np.pi * cut) ** 2
        common = common / response / np.sqrt(generated)
        common[0, 0] = 0.0
        filters = {}
        for name, slope, amplitude in zip(
            FIELDS, self.spectrum.slopes, self.amplitudes, strict=True
        ):
            target = 2 * np.pi / ell**2 * (ell / PIVOT) ** slope
            filters[name] = (amplitude * common * np.sqrt(target)).astype(np.float32)
        # E, B to Q, U with HEALPix's signs; see sky/tiling.py.
        cosine = ((ky**2 - kx**2) / frequency**2).astype(np.float32)
        sine = (-2 * kx * ky / frequency**2).astype(np.float32)
        return filters, (cosine, sine)

    def _condition(self) -> tuple[np.ndarray, np.ndarray]:
        """Block means of the template's i on every chart, standardised, and their scale.

        A plane is taken out of each chart first: the slope of the disc's brightness with latitude
        is geometry, and says nothing about how rough the dust is. The scale is such that the
        blocks have the variance about a plane that the network's own coarsest map has.
        """
        fine = 4 * CHART_BLOCKS
        chart = Tiling(TILE_NSIDE, fine, np.degrees(self._width / fine) * 60)
        vectors = np.concatenate([chart.vectors(t).reshape(-1, 3) for t in range(chart.ntiles)])
        theta, phi = hp.vec2ang(vectors)
        field = self.template.fields(theta, phi)[0]
        shape = (chart.ntiles, CHART_BLOCKS, 4, CHART_BLOCKS, 4)
        blocks = field.reshape(shape).mean(axis=(2, 4)).reshape(chart.ntiles, -1)
        y, x = np.divmod(np.arange(CHART_BLOCKS**2), CHART_BLOCKS)
        basis = np.linalg.qr(np.stack([np.ones_like(x), x, y], axis=1).astype(float))[0]
        blocks = blocks - (blocks @ basis) @ basis.T
        root = np.asarray(self.generator.network.top_matrix(CHART_BLOCKS))
        root = root - basis @ (basis.T @ root)
        scale = np.sqrt((blocks**2).sum(axis=1) / (root**2).sum())
        blocks = (blocks / scale[:, None]).astype(np.float32)
        return blocks.reshape(-1, CHART_BLOCKS, CHART_BLOCKS), scale

    def _roughness_map(self) -> np.ndarray:
        """Root mean square roughness at each pixel of the calibration's maps."""
        pixels = np.arange(hp.nside2npix(CALIBRATION_NSIDE))
        tiles, weights = self.tiling.weights(CALIBRATION_NSIDE, pixels)
        return np.sqrt((weights**2 * self.roughness[tiles] ** 2).sum(axis=1))


class _Tiles:
    """Tiles held in memory while the bands that they reach are projected."""

    def __init__(
        self,
        size: int,
        ids: np.ndarray | None = None,
        coefficients: np.ndarray | None = None,
        offsets: np.ndarray | None = None,
    ) -> None:
        self.size = size
        self.ids = np.empty(0, np.int64) if ids is None else ids
        self.coefficients = (
            np.empty((3, 0, size, size), np.float32) if coefficients is None else coefficients
        )
        self.offsets = np.empty(0) if offsets is None else offsets

    def keep(self, needed: np.ndarray) -> _Tiles:
        kept = np.isin(self.ids, needed)
        return _Tiles(self.size, self.ids[kept], self.coefficients[:, kept], self.offsets[kept])

    def add(self, ids: np.ndarray, coefficients: np.ndarray, offsets: np.ndarray) -> _Tiles:
        return _Tiles(
            self.size,
            np.concatenate([self.ids, ids]),
            np.concatenate([self.coefficients, coefficients], axis=1),
            np.concatenate([self.offsets, offsets]),
        )


def _samples(coefficients: np.ndarray) -> np.ndarray:
    """Values of a cubic spline at its knots; the outermost pixels are not meaningful."""
    for axis in (0, 1):
        neighbours = np.roll(coefficients, 1, axis) + np.roll(coefficients, -1, axis)
        coefficients = (4 * coefficients + neighbours) / 6
    return coefficients


def calibrate(
    template: Template, spectrum: Spectrum, roughness: np.ndarray
) -> tuple[float, float, float]:
    r"""Amplitudes at which small scales of unit :math:`D_{80}` continue the template's spectra.

    Measured where the template is whole, on ``CALIBRATION_ELL``, at \|b\| > 30 degrees, and carried
    to the pivot with the slopes asked for. A small fluctuation of i multiplies the intensity and
    one of q adds to Q/I, so with the mask W and the roughness s

    .. math::
        D^{TT} &= A_T^2 \, \langle W^2 s^2 I^2\rangle / \langle W^2\rangle, \\
        D^{EE} + D^{BB} &= (A_E^2 + A_B^2)\, \langle W^2 I^2\rangle / \langle W^2\rangle
            + A_T^2\, \langle W^2 s^2 P^2\rangle / \langle W^2\rangle .

    The last term is the template's polarisation carried by the intensity's small scales, half of it
    E and half B. EE/BB is set for the sum of both.

    Parameters
    ----------
    template : Template
        The large scales.
    spectrum : Spectrum
        Slopes, EE/BB and the overall factor.
    roughness : ndarray, shape (12 * 64**2,)
        Scale of the T patterns at each pixel.

    Returns
    -------
    (float, float, float)
        Amplitudes of T, E and B.
    """
    maps = template.maps(CALIBRATION_NSIDE)
    mask = latitude_mask(CALIBRATION_NSIDE)
    norm = np.mean(mask**2)
    maps = maps - np.array([np.average(maps[0], weights=mask), 0.0, 0.0])[:, None]
    low, high = CALIBRATION_ELL
    spectra = hp.anafast(maps * mask, lmax=high, iter=1)[:3] / norm
    ell = np.arange(low, high + 1)
    at_pivot = [
        np.average(
            ell * (ell + 1) / (2 * np.pi) * cl[low:] * (ell / PIVOT) ** -slope, weights=2 * ell + 1
        )
        for cl, slope in zip(spectra, spectrum.slopes, strict=True)
    ]
    intensity, q, u = template.maps(CALIBRATION_NSIDE)
    square = np.mean(mask**2 * intensity**2) / norm
    tt = at_pivot[0] / (np.mean((mask * roughness * intensity) ** 2) / norm)
    carried = tt * np.mean((mask * roughness) ** 2 * (q**2 + u**2)) / norm
    total = at_pivot[1] + at_pivot[2]
    share = spectrum.ee_to_bb / (1 + spectrum.ee_to_bb)
    ee = max(share * total - carried / 2, 0.0) / square
    bb = max((1 - share) * total - carried / 2, 0.0) / square
    return tuple(spectrum.amplitude * float(np.sqrt(power)) for power in (tt, ee, bb))


def latitude_mask(nside: int, latitude: float = LATITUDE) -> np.ndarray:
    r"""Mask of \|b\| > ``latitude`` with a cosine edge of 10 degrees above it.

    Returns
    -------
    ndarray, shape (12 nside²,)
        From 0 to 1.
    """
    b = np.abs(90 - np.degrees(hp.pix2ang(nside, np.arange(hp.nside2npix(nside)))[0]))
    return np.sin(0.5 * np.pi * np.clip((b - latitude) / APODISATION, 0, 1)) ** 2
