"""Small scales on any HEALPix pixels: seeded patches, filtered tile by tile, laid on the sphere.

Each tile gets three patterns from the generator, T, E and B. In the Fourier plane of its chart they
are brought to power laws, high-passed above the split of the template, and turned into the frame's
Q and U; the projection does the rest. Nothing here transforms the whole sky, so a pixel depends
only on the tiles that cover it.
"""

from __future__ import annotations

from collections.abc import Callable

import healpy as hp
import numpy as np
import scipy.fft

from pysm_vae.sky.calibration import (
    APODISATION,
    CALIBRATION_NSIDE,
    LATITUDE,
    PIVOT,
    Calibrator,
    Spectrum,
    latitude_mask,
    pattern_power,
)
from pysm_vae.sky.charts import CUT, Chart, spline_values
from pysm_vae.sky.templates import SPLIT, Template, from_log_pol_tens, handover
from pysm_vae.sky.tiling import Tiling
from pysm_vae.stats.spectra import detrend, radial_spectrum
from pysm_vae.vae.generator import CHART_BLOCKS, Generator, draw_latents

#: HEALPix resolution of the tiles: 768 tiles, 7.3 degrees apart.
TILE_NSIDE = 8
#: Patterns keep their spectrum up to this multiple of nside, and a chart is fine enough if it holds
#: that. At 1.5 times it they have nothing left: HEALPix could not tell it from larger scales.
BAND_LIMIT = 1.9
#: Multipoles on which the excess of T's spectrum is measured, on the coarsest chart.
EXCESS_ELL = (110.0, 480.0)
#: Roughness is held within these factors of its median: near the Galactic plane the template's
#: blocks vary by the geometry of the disc, not by the texture of the dust.
ROUGHNESS_RANGE = (0.5, 1.5)
#: Where the intensity is so many times its median at high latitude, fluctuations start to average
#: out along the line of sight.
CROWDED = 10.0

FIELDS = ("T", "E", "B")


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
        self._coarsest = Tiling(TILE_NSIDE, generator.charts[0][0])
        self._width = np.radians(self._coarsest.pixel_size / 60) * self._coarsest.size
        self.size, self.depth, power = self._finest(nside)
        self.tiling = Tiling(TILE_NSIDE, self.size, np.degrees(self._width / self.size) * 60)
        pixels = np.arange(hp.nside2npix(CALIBRATION_NSIDE))
        large_scales = template.fields(*hp.pix2ang(CALIBRATION_NSIDE, pixels))
        calm = latitude_mask(CALIBRATION_NSIDE) > 0
        self._crowded = np.median(large_scales[0, calm]) + np.log(CROWDED)
        if generator.conditional:
            log_intensity = self._template_on_charts()
            self._points, self._blocks, scale = self._condition(log_intensity)
            self.roughness = np.clip(scale / np.median(scale), *ROUGHNESS_RANGE)
        else:
            self.roughness = np.ones(self.tiling.ntiles)
        calibrator = Calibrator(
            from_log_pol_tens(large_scales),
            self.spectrum,
            split,
            self._roughness_map(),
            self.crowding(large_scales[0]),
            self._coarsest,
        )
        self._chart = Chart(self.size, self._width, BAND_LIMIT * nside)
        slopes = self.spectrum.slopes
        levels = calibrator.temperature()
        drawn, excess = power, np.ones_like
        if generator.conditional and levels.any():
            deficit, excess = self._measure_conditional(log_intensity, levels)
            drawn = power * np.pad(deficit, (0, len(power) - len(deficit)), constant_values=1.0)
        self.levels = np.array([levels, *calibrator.polarisation(levels, excess)])
        powers = [
            pattern_power(self._chart.ell, level, slope)
            for level, slope in zip(self.levels, slopes, strict=True)
        ]
        powers[0] = powers[0] / excess(self._chart.ell)
        self._filters = {
            "T": self._chart.filter(powers[0], drawn),
            "E": self._chart.filter(powers[1], power),
            "B": self._chart.filter(powers[2], power),
            # The part of E that is made of T's patches.
            "TE": self._chart.filter(powers[1], drawn),
        }

    @property
    def lmax(self) -> float:
        """Multipole up to which the patterns keep their spectrum."""
        return min(CUT[0] * np.pi * self.size / self._width, BAND_LIMIT * self.nside)

    def crowding(self, i: np.ndarray) -> np.ndarray:
        r"""Factor on the fluctuations where many clouds share a line of sight.

        N independent clouds have relative fluctuations of :math:`1/\sqrt N`, and N grows with the
        intensity; so :math:`(1 + I/I_0)^{-1/2}`, with :math:`I_0` ten times the template's median
        at \|b\| > 30 degrees. It also keeps the bright plane's small scales, which its steep
        profile would spread over all multipoles, out of the large ones.

        Parameters
        ----------
        i : ndarray
            The template's i.
        """
        return 1 / np.sqrt(1 + np.exp(i - self._crowded))

    def fields(
        self,
        large_scales: np.ndarray,
        pixels: np.ndarray | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Draw the small scales on a set of pixels.

        Parameters
        ----------
        large_scales : ndarray, shape (3, npix)
            The template's fields on these pixels.
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
        fields = np.zeros((3, len(pixels)))
        if not self.levels.any():
            return fields
        total = len(self.tiling.tiles_for(self.nside, pixels))
        held = _Tiles(self.size)
        drawn = 0
        for band in self._bands(pixels):
            needed = self.tiling.tiles_for(self.nside, pixels[band])
            # Neighbouring bands share tiles: keep those, draw the rest.
            fresh = np.setdiff1d(needed, held.ids)
            held = held.keep(needed).add(fresh, *self._draw(fresh))
            t, q, u, offset = self.tiling.project(
                held.coefficients, self.nside, pixels[band], held.ids, held.offsets
            )
            crowding = self.crowding(large_scales[0, band])
            fields[:, band] = crowding * np.stack([t + crowding * offset, q, u])
            drawn += len(fresh)
            if progress is not None:
                progress(drawn, total)
        return fields

    def _finest(self, nside: int) -> tuple[int, int | None, np.ndarray]:
        """Size, octaves and mean power of the coarsest patches that are fine enough."""
        for chart in self.generator.card["spectra"]:
            if CUT[0] * np.pi * chart["size"] / self._width >= BAND_LIMIT * nside:
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
                patterns[number] = self._conditional(latents, tiles)
            else:
                patterns[number] = self.generator.decode(latents, beam=False)
        patterns = detrend(patterns)
        return self._filter(patterns, self.roughness[tiles])

    def _conditional(self, latents: list[np.ndarray], tiles: np.ndarray) -> np.ndarray:
        """Patches drawn for the template, less the template.

        The template lacks power above the split, and a network that is given too smooth a map draws
        too little for it; so the coarsest latents supply what the taper has taken.
        """
        root = np.asarray(self.generator.network.top_matrix(CHART_BLOCKS))
        top = latents[0][:, None] @ root.T
        top = top.reshape(-1, CHART_BLOCKS, CHART_BLOCKS)
        ell = np.pi / self._width * np.hypot(*np.indices(top.shape[1:]))
        lacking = np.sqrt(1 - handover(ell, *self.split) ** 2)
        top = scipy.fft.idctn(lacking * scipy.fft.dctn(top, axes=(1, 2)), axes=(1, 2))
        patches = self.generator.decode(latents[1:], self._blocks[tiles] + top, beam=False)
        # A cosine series through the template's points is the same function on any finer grid.
        series = scipy.fft.dctn(self._points[tiles], axes=(1, 2), norm="forward")
        missing = patches.shape[1] - series.shape[1]
        series = np.pad(series, ((0, 0), (0, missing), (0, missing)))
        return patches - scipy.fft.idctn(series, axes=(1, 2), norm="forward")

    def _filter(self, patterns: np.ndarray, roughness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bring T, E, B patches to their spectra, and to T, Q, U spline coefficients."""
        coefficients = np.empty_like(patterns)
        offsets = np.empty(len(roughness))
        mix = self.spectrum.te_ratio
        for i, rough in enumerate(roughness):
            t, e, b = self._chart.waves(patterns[:, i])
            # T and E share a part of one pattern, each with its own slope.
            e = mix * self._filters["TE"] * t + np.sqrt(1 - mix**2) * self._filters["E"] * e
            q, u = self._chart.stokes(e, self._filters["B"] * b)
            waves = np.stack([self._filters["T"] * rough * t, q, u])
            coefficients[:, i] = self._chart.patches(waves)
            offsets[i] = self._offset(coefficients[0, i])
        return coefficients, offsets

    def _offset(self, coefficients: np.ndarray) -> float:
        """What to add to a T pattern so that its exponential has unit mean over the tile."""
        size = len(coefficients)
        axis = (np.arange(size) - (size - 1) / 2) * self._width / size
        core = np.hypot(axis[:, None], axis) < 0.5 * hp.nside2resol(TILE_NSIDE)
        return -float(np.log(np.mean(np.exp(spline_values(coefficients)[core]))))

    def _template_on_charts(self) -> np.ndarray:
        """The template's i at points of every chart, four a side of each block."""
        coarsest, points = self._coarsest, 4 * CHART_BLOCKS
        width = coarsest.size // points
        shape = (points, width, points, width, 3)
        vectors = [coarsest.vectors(t).reshape(shape).mean((1, 3)) for t in range(coarsest.ntiles)]
        theta, phi = hp.vec2ang(np.concatenate(vectors).reshape(-1, 3))
        return self.template.fields(theta, phi)[0].reshape(-1, points, points)

    def _condition(self, field: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The template's i on every chart, at points and as block means, and its scale there.

        A plane is taken out of each chart first: the slope of the disc's brightness with latitude
        is geometry, and says nothing about how rough the dust is. The scale is such that the
        blocks have the variance about a plane that the network's own coarsest map has.
        """
        field = detrend(field, degree=1)
        shape = (len(field), CHART_BLOCKS, 4, CHART_BLOCKS, 4)
        blocks = field.reshape(shape).mean(axis=(2, 4))
        root = np.asarray(self.generator.network.top_matrix(CHART_BLOCKS))
        own = detrend(root.T.reshape(-1, CHART_BLOCKS, CHART_BLOCKS), degree=1)
        scale = np.sqrt((blocks**2).sum(axis=(1, 2)) / (own**2).sum())[:, None, None]
        return field / scale, (blocks / scale).astype(np.float32), scale.ravel()

    def _measure_conditional(
        self, log_intensity: np.ndarray, levels: np.ndarray
    ) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """Measure how patches drawn for the template differ from the prior's, at high latitude.

        They lack the large scales, which the template has. And they vary more where it is brighter,
        as the dust does; such places weigh most in a spectrum of intensity, and the exponential
        stretches them further.

        Parameters
        ----------
        log_intensity : ndarray, shape (ntiles, points, points)
            The template's i on every chart.
        levels : ndarray, shape (len(NODES),)
            Of the T patterns, for the strength of the exponential.

        Returns
        -------
        deficit : ndarray, shape (size // 2,)
            Power over that of the prior's patches at 1, 2, … cycles a chart, at the coarsest size;
            all finer scales have theirs.
        excess : callable
            Of multipoles: power of what the patterns add to the intensity over that of a faint
            pattern that knows nothing of the brightness. A power law on ``EXCESS_ELL``, constant
            beyond.
        """
        size, depth = self.generator.charts[0]
        prior = np.array(self.generator.card["spectra"][0]["power"])
        latitude = np.degrees(np.arcsin(self.tiling.centres[:, 2]))
        tiles = np.flatnonzero(np.abs(latitude) > LATITUDE + APODISATION / 2)
        # The same latents for every sky: this belongs to the template and the weights.
        shapes = self.generator.latent_shapes(size, depth)
        keys = [(TILE_NSIDE, int(tile)) for tile in tiles]
        patches = detrend(self._conditional(draw_latents(shapes, keys), tiles))
        number, power = radial_spectrum(patches, width=0.35)
        ell = 2 * np.pi * number / self._width
        # Above the template's multipoles there is no deficit, only chance.
        deficit = np.where(ell < 1.2 * self.split[1], power.mean(axis=0) / prior, 1.0)

        chart = Chart(size, self._width)
        i = log_intensity[tiles].repeat(2, axis=1).repeat(2, axis=2)
        crowding = self.crowding(i)
        rough = self.roughness[tiles, None, None]
        waves = chart.waves(patches)
        powers = pattern_power(chart.ell, levels, self.spectrum.slopes[0])
        blind = detrend(self.generator.decode(draw_latents(shapes, keys), beam=False))
        blind = spline_values(chart.patches(chart.filter(powers, prior) * chart.waves(blind)))
        faint = radial_spectrum(detrend(np.exp(i) * crowding * rough * blind), width=0.35)[1]
        used = (ell > EXCESS_ELL[0]) & (ell < EXCESS_ELL[1])
        fit = np.zeros(2)

        def excess(ell: np.ndarray) -> np.ndarray:
            return np.exp(np.polyval(fit, np.log(np.clip(ell, *EXCESS_ELL) / PIVOT)))

        # The exponential depends on the amplitude, so twice.
        for _ in range(2):
            response = chart.filter(powers / excess(chart.ell), prior * deficit)
            coefficients = chart.patches(response * waves) * rough
            offsets = np.array([self._offset(c) for c in coefficients])[:, None, None]
            exponent = crowding * (spline_values(coefficients) + crowding * offsets)
            added = radial_spectrum(detrend(np.exp(i) * np.expm1(exponent)), width=0.35)[1]
            ratio = added[:, used].mean(axis=0) / faint[:, used].mean(axis=0)
            fit = fit + np.polyfit(np.log(ell[used] / PIVOT), np.log(ratio), 1, w=ell[used] ** -0.5)
        return deficit, excess

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
