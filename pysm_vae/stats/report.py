"""Prior samples of a generator beside real sky that it never saw, with the controls that count.

Figures without references mean little: regions of real sky differ from each other by factors. So
each candidate (prior samples, samples drawn for the held-out patches' own large scales, and any
peer's patches) stands beside real sky from other regions, a modulated Gaussian of the held-out
patches' spectrum, and the network of Thorne, Knox & Prabhu (2021), all measured alike against the
same held-out patches.

Everything is measured on the pixel grid. Maps of about the same scale (see `SCALE_RANGE`) are
compared pixel by pixel as the network sees them, and spectra and bands are laid out in cycles per
patch, so that the figures of maps with other pixel sizes line up.

`evaluate` makes an `Evaluation`; `pool` puts several of them (folds) together; `write_report`
leaves them as figures for people (HTML, PNG) and programs (JSON).
"""

from __future__ import annotations

import itertools
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits

from pysm_vae.files import atomic_write, writable_folder
from pysm_vae.mapfiles import strict_fits
from pysm_vae.stats.compare import Summary, summarise
from pysm_vae.stats.comparison import (
    CANDIDATES,
    Comparison,
    Conditioning,
    Evaluation,
    finite,
)
from pysm_vae.stats.controls import modulated_gaussian
from pysm_vae.stats.moments import moments_by_brightness
from pysm_vae.stats.page import write_page
from pysm_vae.stats.panels import draw_sheet
from pysm_vae.stats.spectra import ell_bins, flat_correlation, fundamental, standardise
from pysm_vae.stats.twosample import TwoSample, both_ways, halves
from pysm_vae.vae.generator import BATCH, Generator, load_generator
from pysm_vae.vae.patches import PatchSet, SkyMap, grid_patches, read_map, tangent_grid

if TYPE_CHECKING:
    from pysm_vae.simulate import Progress
    from pysm_vae.vae.training import TrainingMap

SCALE_RANGE = 1.5
"""Real regions count as references if their pixel size is within this factor of the held-out's.
Dust is only *close* to scale-free, and a wide choice of regions would make the yardstick lax."""

# Wavelength, in pixels, of the lowest band, and the most of it that fits a patch: a band's filter
# needs a quarter of the patch free of edge effects, which leaves 3/8 on each side for its kernel.
_LONGEST_WAVE = 48.0
_WAVE_OF_SIZE = 0.75
# Shortest wavelength of bands and spectra: beyond the beam there is little dust.
_SHORTEST_WAVE = 3.0
_SPECTRUM_BINS = 9
# Relative margin of multipoles that would otherwise fall on a limit that rounding may cross.
_MARGIN = 1e-6
# Each half of a region needs so many patches for a classifier to learn from it.
_FEWEST_PATCHES = 4


@dataclass(frozen=True)
class CandidateSky:
    """A simulated sky to be judged; patches are cut from all of it.

    Attributes
    ----------
    sky : SkyMap
        Of log-intensity.
    pixel_size : float, optional
        Arcmin; by default that of the held-out map.
    """

    sky: SkyMap
    pixel_size: float | None = None


def evaluate(
    generator: Generator,
    maps: Sequence[TrainingMap],
    regions: Sequence[str],
    *,
    real_regions: Sequence[str] | None = None,
    n: int = 256,
    size: int | None = None,
    seed: int = 0,
    spacing: float = 0.5,
    thorne2021: Generator | None = None,
    candidates: Mapping[str, np.ndarray | CandidateSky] | None = None,
    two_sample: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a generator's samples with held-out patches of real sky.

    The held-out patches are `grid_patches` of the regions, at each map's pixel size; a map into
    whose regions no two patches fit is left out, with a note. Samples are drawn in the map's
    environment, and calibrated as users get them. Conditional samples are drawn for the patches'
    block means, on the coarsest grid that the network was trained from, at least two a patch.
    Reconstructions are the decoded posterior means of the held-out patches (of networks whose
    encoder is shipped). The modulated Gaussian keeps the held-out patches' own largest scales
    (below one cycle per patch or ℓ = 100), and its amplitude follows them over half a patch.

    The two-sample test compares like with like. The held-out patches are cut in two halves that
    share no sky (`twosample.halves`); a candidate in its draws for either half, or, if it knows no
    patches, in two; each other real region in two halves of its own. A classifier is trained to
    tell the first half of a set from real sky (the first half of the held-out patches, and, with
    the same weight, all real regions but the one in question), and scored on the second halves of
    the set and of the held-out patches, whose sky it never saw; then the other way round. A
    candidate shows it as many patches as a real region does (the median one).

    Parameters
    ----------
    generator : Generator
        The weights to judge.
    maps : sequence of TrainingMap
        Maps with the held-out regions, and with real regions to compare them with.
    regions : sequence of str
        Held-out regions. Nothing checks that the weights never saw them: their card says.
    real_regions : sequence of str, optional
        Regions of the maps that set the yardstick. By default all that are not held out and whose
        pixels are within `SCALE_RANGE` of the held-out map's. Patches on held-out sky (of another
        map) are left out.
    n : int
        Prior samples, and about as many conditional ones and controls.
    size : int, optional
        Pixels a side; by default that of the generator's training.
    seed : int
        Of samples, controls and classifiers.
    spacing : float
        Of the real patches' centres, in sides of a patch, held-out and reference regions alike.
        Less than 1 makes patches overlap: they show more of a small region, but are not
        independent, so that more of them do not shrink errors in proportion.
    thorne2021 : Generator, optional
        The reference network; left out, with a note, if its patches have another size.
    candidates : mapping of str to array or CandidateSky, optional
        More sets to judge, by name: patches of log-intensity of shape (m, size, size), or
        simulated skies, which are cut into patches as the real ones are. No more than ``n`` of
        each are looked at, spread over the set.
    two_sample : bool
        Whether to train classifiers: 10 s or so for each candidate and each real region.
    progress : callable, optional
        Called with ``"two_sample"``, how many classifiers are trained, and of how many.

    Raises
    ------
    ValueError
        If an argument is unfit, no map has a region, no patch of this size fits into it, or there
        is no real region to compare with.
    """
    size = generator.size if size is None else size
    candidates = {} if candidates is None else candidates
    _check_arguments(maps, regions, real_regions, n, size, spacing, candidates)
    notes: list[str] = []
    if thorne2021 is not None and thorne2021.size != size:
        notes.append(
            f"thorne2021 left out: its patches have {thorne2021.size} pixels a side, not {size}"
        )
        thorne2021 = None
    cut = _cut_maps(maps, regions, real_regions, size, spacing, notes)

    drawn = {}
    if thorne2021 is not None:
        drawn["thorne2021"] = thorne2021.sample(n, seed=seed)
    # Samples depend on nothing of a map but its environment.
    samples = {
        environment: generator.sample(n, size, seed, environment=environment)
        for environment in dict.fromkeys(held.environment for held, *_ in cut)
    }
    comparisons, jobs = [], []
    for number, (held, own, patches, real) in enumerate(cut):
        others = {
            name: _thinned(_candidate_patches(found, size, held.pixel_size, spacing), n)
            for name, found in candidates.items()
        }
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, number))))
        # Sets that are drawn for the held-out patches: so many for each.
        tied = {"modulated_gaussian": _control(patches.patches, held.pixel_size, n, rng)}
        options = _options(size, held.pixel_size)
        conditioning = None
        if generator.conditional:
            coarse = _block_means(generator, patches.patches)
            tied["conditional"] = _conditional(generator, coarse, size, n, seed, held.environment)
            tied["reconstructions"] = _reconstruct(generator, patches.patches, held.environment)
            conditioning = _measure_conditioning(
                patches.patches, tied["conditional"], coarse, held.pixel_size, options["bins"]
            )
        ours = {"samples": samples[held.environment], **drawn, **tied}
        sets = {name: ours[name] for name in CANDIDATES if name in ours} | others
        comparison = Comparison(
            name=held.sky.name,
            regions=own,
            pixel_size=held.pixel_size,
            held_out=summarise(patches.patches, held.pixel_size, **options),
            real={
                name: summarise(other.patches, held.pixel_size, **options)
                for name, other in real.items()
            },
            candidates={
                # A reconstruction has the scale of its original; to scale it would hide a loss.
                name: summarise(
                    found, held.pixel_size, standardise=name != "reconstructions", **options
                )
                for name, found in sets.items()
            },
            examples=_all_examples(patches.patches, sets, tied),
            conditioning=conditioning,
        )
        comparisons.append(comparison)
        if two_sample:
            side = size * held.pixel_size / 60
            jobs.append(_two_sample_jobs(comparison, patches, real, sets, tied, side, notes))
    if two_sample:
        comparisons = _run_two_sample(comparisons, jobs, seed, progress)
    return Evaluation(
        name=generator.name,
        sha256=generator.sha256,
        size=size,
        n=n,
        seed=seed,
        spacing=spacing,
        comparisons=tuple(comparisons),
        notes=tuple(notes),
    )


def evaluate_to_folder(
    weights: str | Path,
    maps: Sequence[TrainingMap],
    regions: Sequence[str],
    out: str | Path,
    *,
    thorne2021: str | Path | None = "thorne2021",
    **options: Any,
) -> Evaluation:
    """Evaluate weights and leave the report in a folder (see `write_report`).

    Parameters
    ----------
    weights : str or path-like
        As `load_generator` takes them.
    maps, regions
        See `evaluate`.
    out : path-like
        The folder.
    thorne2021 : str, path-like or None
        Weights of the reference network; None, or shipped ones that are not there, leave it out.
    **options
        What else `evaluate` takes.

    Raises
    ------
    FileNotFoundError
        If the weights are missing.
    ValueError
        As `evaluate` and `load_generator` say.
    OSError
        If the folder cannot be written to.
    """
    out = writable_folder(out)
    generator = load_generator(weights)
    reference, note = None, None
    if thorne2021 is not None:
        try:
            reference = load_generator(thorne2021)
        except FileNotFoundError:
            if thorne2021 != "thorne2021":
                raise
            note = "thorne2021 left out: no such weights are shipped"
    result = evaluate(generator, maps, regions, thorne2021=reference, **options)
    if note:
        result = replace(result, notes=(*result.notes, note))
    write_report({result.name: result}, out)
    return result


def write_report(evaluations: Mapping[str, Evaluation], out: str | Path) -> None:
    """Write evaluations, such as the folds of one network, for people and for programs.

    Leaves ``evaluation.json`` (``{"pooled": …, "evaluations": {name: …}}``: every figure),
    ``evaluation.html`` (one page with figures and tables, which needs nothing else) and
    ``evaluation.png`` (the first evaluation on a sheet, see `draw`).

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        By the name of the fold.
    out : path-like
        Folder, made if need be.

    Raises
    ------
    ValueError
        If there is no evaluation, or they cannot be pooled.
    OSError
        If the folder cannot be written to.
    """
    out = writable_folder(out)
    pooled = pool(list(evaluations.values()))
    figures = {
        "pooled": pooled,
        "evaluations": {name: each.to_json() for name, each in evaluations.items()},
    }
    with atomic_write(out / "evaluation.json") as partial:
        partial.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n")
    write_page(evaluations, pooled, out / "evaluation.html")
    draw(next(iter(evaluations.values())), out / "evaluation.png")


def draw(evaluation: Evaluation, path: Path) -> None:
    """Draw the comparison with the first held-out map on one sheet: PNG, or what the suffix says.

    Rows of example patches; spectra over the held-out median; kurtosis per band; Minkowski curves.
    """
    figure = draw_sheet(evaluation.comparisons[0], evaluation.name)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=90)


def pool(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Put several folds together: medians over the folds, and every fold's own value.

    A fold is the held-out part of one map; an evaluation with several held-out maps has several.
    Spectra are put together patch by patch, each fold's set of patches with the same weight
    whatever its size, in units of the pixel, so that folds of other pixel sizes line up in cycles
    per patch.

    Parameters
    ----------
    evaluations : sequence of Evaluation
        Of patches of one size.

    Returns
    -------
    dict
        Plain numbers, lists and None (a fold that has no such figure):

        - ``folds``: what they are; the lists below are in this order;
        - ``labels``: names of the candidates for people;
        - ``yardsticks``, ``minkowski_overlap_over_real``: ``{candidate: {measure: {"median": …,
          "folds": […]}}}``;
        - ``two_sample``: ``{"real" or candidate: {"auc": {…}, "over_real": {…}}}``, the AUC and how
          far it is above that of the median real region (0 for real itself);
        - ``cycles_per_patch``, and ``ell`` if all folds have the same pixels;
        - ``spectrum_ratio``, ``spread_ratio``: ``{candidate: {"pooled": […], "folds": [[…], …]}}``,
          a list has one value a bin. Median spectrum and 16–84 % spread of ln C_ℓ, over the data's;
        - ``reconstruction_ratio``, ``correlation``, ``correlation_between_samples``: the same; None
          if no fold has any.

    Raises
    ------
    ValueError
        If there is nothing to pool, or patch sizes differ.
    """
    folds = [(e, c) for e in evaluations for c in e.comparisons]
    if not folds:
        raise ValueError("no evaluations are given: there is nothing to pool")
    sizes = {e.size for e in evaluations}
    if len(sizes) > 1:
        raise ValueError(f"the evaluations have patches of {sorted(sizes)} pixels: take one size")
    comparisons = [c for _, c in folds]
    labels = {name: label for c in comparisons for name, label in c.labels.items()}
    pixels = {c.pixel_size for c in comparisons}

    def over_folds(of: Callable[[Comparison], float | None]) -> dict[str, Any]:
        values = [of(c) for c in comparisons]
        known = [v for v in values if v is not None]
        return {"median": float(np.median(known)) if known else None, "folds": values}

    def measures(of: Callable[[Comparison, str], dict[str, float]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in labels:
            entries = {id(c): of(c, name) for c in comparisons if name in c.candidates}
            keys = dict.fromkeys(key for entry in entries.values() for key in entry)
            found[name] = {
                key: over_folds(
                    lambda c, key=key, e=entries: e.get(id(c), {}).get(key)  # type: ignore[misc]
                )
                for key in keys
            }
        return found

    def aucs(of: Callable[[Comparison], float | None]) -> dict[str, Any]:
        def over_real(c: Comparison) -> float | None:
            auc, real = of(c), c.real_auc()
            return None if auc is None or real is None else auc - real

        return {"auc": over_folds(of), "over_real": over_folds(over_real)}

    def spectra(of: Callable[[Comparison], Summary | None]) -> list[np.ndarray | None]:
        """Each fold's spectra in units of the pixel."""
        return [
            s.spectrum / np.radians(c.pixel_size / 60) ** 2 if (s := of(c)) is not None else None
            for c in comparisons
        ]

    held = spectra(lambda c: c.held_out)
    ratios, spreads = {}, {}
    for name in labels:
        ours = spectra(lambda c, name=name: c.candidates.get(name))  # type: ignore[misc]
        # The data of the same folds.
        data = [d for d, o in zip(held, ours, strict=True) if o is not None]
        known = [o for o in ours if o is not None]
        ratios[name] = {
            "pooled": (_pooled(known, 50) / _pooled(data, 50)).tolist(),
            "folds": [
                None
                if name not in c.candidates
                else c.spectrum_ratio(c.candidates[name])["median"].tolist()
                for c in comparisons
            ],
        }
        logs = ([np.log(each) for each in sets] for sets in (known, data))
        wide = (_pooled(s, 84) - _pooled(s, 16) for s in logs)
        spreads[name] = {
            "pooled": np.divide(*wide).tolist(),
            "folds": [
                None if name not in c.candidates else c.spread_ratio(c.candidates[name]).tolist()
                for c in comparisons
            ],
        }

    def per_patch(of: Callable[[Comparison], np.ndarray | None]) -> dict[str, Any] | None:
        values = [of(c) for c in comparisons]
        known = [v for v in values if v is not None]
        if not known:
            return None
        return {
            "pooled": _pooled(known, 50).tolist(),
            "folds": [None if v is None else np.median(v, axis=0).tolist() for v in values],
        }

    def reconstructed(c: Comparison) -> np.ndarray | None:
        found = c.candidates.get("reconstructions")
        return None if found is None else found.spectrum / c.held_out.spectrum

    tested = any(c.two_sample for c in comparisons)
    found = {
        "folds": [
            {
                "weights": e.name,
                "map": c.name,
                "regions": list(c.regions),
                "pixel_size_arcmin": c.pixel_size,
                "patches": len(c.held_out),
            }
            for e, c in folds
        ],
        "labels": labels,
        "yardsticks": measures(Comparison.yardsticks),
        "minkowski_overlap_over_real": measures(Comparison.relative_overlaps),
        "two_sample": {
            "real": aucs(Comparison.real_auc),
            **{
                name: aucs(
                    lambda c, n=name: (  # type: ignore[misc]
                        c.two_sample[n].auc if n in c.two_sample else None
                    )
                )
                for name in labels
                if any(name in c.two_sample for c in comparisons)
            },
        }
        if tested
        else None,
        "cycles_per_patch": comparisons[0].cycles().tolist(),
        "ell": comparisons[0].held_out.ell.tolist() if len(pixels) == 1 else None,
        "spectrum_ratio": ratios,
        "spread_ratio": spreads,
        "reconstruction_ratio": per_patch(reconstructed),
        "correlation": per_patch(
            lambda c: None if c.conditioning is None else c.conditioning.with_held_out
        ),
        "correlation_between_samples": per_patch(
            lambda c: None if c.conditioning is None else c.conditioning.between_samples
        ),
    }
    return finite(found)


def figures_for_card(evaluation: Evaluation) -> dict[str, Any]:
    """Give the few figures that a model card holds, as medians over the held-out maps.

    Returns
    -------
    dict
        ``regions`` (held out), ``real_regions`` (that set the yardstick), ``patches``, ``size``,
        the ``yardsticks`` of each candidate, ``minkowski_overlap`` (0 to 1), ``spectrum_ratio``
        and ``spread_ratio`` (sample over held-out patch, of the median and of the 16–84 % spread),
        ``reconstruction_ratio`` (of networks that reconstruct; all three at every other bin's
        ``cycles_per_patch``), ``two_sample`` (the classifier's AUC, if it was asked for) and
        ``kurtosis`` (median excess kurtosis, not its arcsinh that the yardstick takes, in bands of
        the given ``wavelengths_pixels``, next to the real sky's).
    """
    comparisons = evaluation.comparisons
    # Reconstructions are no draws: of them a card has the spectrum alone.
    names = [
        name
        for name in CANDIDATES
        if name != "reconstructions" and all(name in c.candidates for c in comparisons)
    ]

    def middle(values: Sequence[Any]) -> Any:
        return _round(np.median(np.array(values, np.float64), axis=0))

    def medians(entries: Sequence[dict[str, float]]) -> dict[str, float]:
        return {
            key: middle([entry[key] for entry in entries])
            for key in entries[0]
            if all(key in entry for entry in entries)
        }

    def kurtosis(summaries: Sequence[Summary]) -> list[float]:
        # The finest two bands: the others hold only few waves a patch.
        return middle([np.median(s.kurtosis, axis=0)[-2:] for s in summaries])

    first = comparisons[0].held_out
    waves = 2 * np.pi / (first.bands * np.radians(first.pixel_size / 60))
    figures = {
        "regions": [name for c in comparisons for name in c.regions],
        "real_regions": sorted({name for c in comparisons for name in c.real}),
        "patches": sum(len(c.held_out) for c in comparisons),
        "size": evaluation.size,
        "yardsticks": {name: medians([c.yardsticks(name) for c in comparisons]) for name in names},
        "minkowski_overlap": {
            "real": medians([c.real_overlaps() for c in comparisons]),
            "samples": medians([c.overlaps("samples") for c in comparisons]),
        },
        "cycles_per_patch": _round(comparisons[0].cycles()[1::2]),
        "spectrum_ratio": {
            "samples": middle(
                [c.spectrum_ratio(c.candidates["samples"])["median"][1::2] for c in comparisons]
            )
        },
        "spread_ratio": {
            "samples": middle([c.spread_ratio(c.candidates["samples"])[1::2] for c in comparisons])
        },
        "wavelengths_pixels": _round(waves[-2:]),
        "kurtosis": {
            "held_out": kurtosis([c.held_out for c in comparisons]),
            **{name: kurtosis([c.candidates[name] for c in comparisons]) for name in names},
        },
    }
    ratios = [c.reconstruction_ratio() for c in comparisons]
    if all(ratio is not None for ratio in ratios):
        figures["reconstruction_ratio"] = middle([ratio["median"][1::2] for ratio in ratios])
    tested = [c for c in comparisons if c.real_two_sample]
    if tested:
        figures["two_sample"] = {
            "real": middle([c.real_auc() for c in tested]),
            **{name: middle([c.two_sample[name].auc for c in tested]) for name in names},
        }
    return figures


def read_candidate(
    path: str | Path,
    *,
    pixel_size: float | None = None,
    fwhm: float | None = None,
    min_latitude: float | None = None,
) -> np.ndarray | CandidateSky:
    """Read what is to be judged: a simulated sky, or a set of patches.

    Parameters
    ----------
    path : path-like
        A map of dust intensity as `read_map` takes it; or patches of log-intensity, in any unit and
        with any offset, of shape (n, size, size): a ``.npy`` file, a ``.npz`` file (its array
        ``patches``, or its only one), or a FITS image cube.
    pixel_size, fwhm : float, optional
        Of a map's patches, and to smooth it to; arcmin.
    min_latitude : float, optional
        Leave out smaller Galactic latitudes of HEALPix maps, degrees.

    Returns
    -------
    array or CandidateSky
        As `evaluate` takes them.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is neither, or a size is given for patches.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"candidate {str(path)!r} does not exist. Check the path.")
    patches = _read_patches(path)
    if patches is None:
        sky = read_map(path, fwhm=fwhm)
        if sky.kind == "healpix":
            sky.min_latitude = min_latitude
        return CandidateSky(sky, pixel_size)
    if pixel_size is not None or fwhm is not None:
        raise ValueError(
            f"{path} holds patches: they are judged pixel by pixel, and take no pixel size or FWHM"
        )
    if patches.ndim != 3 or patches.shape[1] != patches.shape[2]:
        raise ValueError(f"{path} has shape {patches.shape}: patches have (n, size, size)")
    return patches


def _read_patches(path: Path) -> np.ndarray | None:
    """Patches of an array file or a FITS cube; None for what should be a map."""
    if path.suffix in (".npy", ".npz"):
        try:
            with path.open("rb") as stream:
                found = np.load(stream, allow_pickle=False)
                if isinstance(found, np.ndarray):
                    return found
                name = "patches" if "patches" in found.files else found.files[0]
                if name != "patches" and len(found.files) > 1:
                    raise ValueError(f"its arrays are {found.files}, none of them 'patches'")
                return found[name]
        except (ValueError, EOFError, IndexError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} cannot be read as patches: {error}") from error
    with strict_fits(path, f"candidate {str(path)!r}") as hdus:
        for hdu in hdus:
            if isinstance(hdu, fits.BinTableHDU) and not isinstance(hdu, fits.CompImageHDU):
                return None
            shape = hdu.shape
            if len(shape) >= 2:
                cube = len(shape) == 3 and shape[0] > 1 and shape[1] == shape[2]
                return np.array(hdu.data, np.float64) if cube else None
    return None


def _check_arguments(
    maps: Sequence[TrainingMap],
    regions: Sequence[str],
    real_regions: Sequence[str] | None,
    n: int,
    size: int,
    spacing: float,
    candidates: Mapping[str, np.ndarray | CandidateSky],
) -> None:
    if n < 2:
        raise ValueError(f"n={n}: at least two samples are needed, since their scatter is used")
    if not 0.05 <= spacing <= 10:
        raise ValueError(f"spacing={spacing}: give 0.05 to 10 sides of a patch")
    known = [name for m in maps for name in m.sky.region_names]
    unknown = sorted({*regions, *(real_regions or ())} - set(known))
    if unknown or not regions:
        raise ValueError(
            f"regions {unknown or list(regions)} are in none of the maps: choose from "
            f"{', '.join(known)}"
        )
    both = sorted(set(regions) & set(real_regions or ()))
    if both:
        raise ValueError(f"regions {both} are held out and cannot be references as well")
    for name, found in candidates.items():
        if name in CANDIDATES or name in ("held_out", "real"):
            raise ValueError(f"candidate {name!r} has a name that is taken: give it another")
        if isinstance(found, CandidateSky):
            continue
        shape = np.shape(found)
        if len(shape) != 3 or shape[1:] != (size, size) or shape[0] < 2:
            raise ValueError(
                f"candidate {name!r} has shape {shape}: it must hold two or more patches, "
                f"(n, {size}, {size}). Cut it again, or evaluate patches of its size."
            )
        if not np.isfinite(found).all():
            raise ValueError(f"candidate {name!r} has pixels that are not finite: leave them out")


def _cut_maps(
    maps: Sequence[TrainingMap],
    regions: Sequence[str],
    real_regions: Sequence[str] | None,
    size: int,
    spacing: float,
    notes: list[str],
) -> list[tuple[TrainingMap, tuple[str, ...], PatchSet, dict[str, PatchSet]]]:
    """Each map with held-out regions, these, their patches, and the real regions' patches."""
    cut, misfits = [], []
    for held in maps:
        own = tuple(name for name in held.sky.region_names if name in regions)
        if not own:
            continue
        try:
            patches = _grid(held.sky, size, held.pixel_size, spacing, own)
            if len(patches) < 2:
                raise ValueError(
                    f"only one patch of {size} pixels fits into {', '.join(own)}: at least two "
                    "are needed. Take smaller patches."
                )
            real = _real_sets(held, patches, maps, regions, real_regions, size, spacing, notes)
        except ValueError as error:
            misfits.append(error)
            notes.append(f"{', '.join(own)} left out: {error}")
            continue
        cut.append((held, own, patches, real))
    if not cut:
        raise misfits[0]
    return cut


def _grid(
    sky: SkyMap, size: int, pixel_size: float, spacing: float, regions: Sequence[str] | None
) -> PatchSet:
    return grid_patches(
        sky, size, pixel_size, spacing=spacing * size * pixel_size / 60, regions=regions
    )


def _candidate_patches(
    found: np.ndarray | CandidateSky, size: int, pixel_size: float, spacing: float
) -> np.ndarray:
    if not isinstance(found, CandidateSky):
        return np.asarray(found)
    own = pixel_size if found.pixel_size is None else found.pixel_size
    patches = _grid(found.sky, size, own, spacing, None).patches
    if len(patches) < 2:
        raise ValueError(
            f"only one patch of {size} pixels of {own:g}' fits into {found.sky.name!r}: at least "
            "two are needed"
        )
    return patches


def _thinned(patches: np.ndarray, n: int) -> np.ndarray:
    """At most n patches, spread over the set."""
    return patches[np.linspace(0, len(patches) - 1, min(n, len(patches))).astype(int)]


def _two_sample_jobs(
    comparison: Comparison,
    held: PatchSet,
    real: Mapping[str, PatchSet],
    sets: Mapping[str, np.ndarray],
    tied: Mapping[str, np.ndarray],
    side: float,
    notes: list[str],
) -> dict[tuple[str, str], dict[str, Any]]:
    """Arguments of `both_ways` for each set, by ("real" or "candidate", name)."""
    parts = halves(held, side)
    if min(map(len, parts)) < _FEWEST_PATCHES:
        notes.append(
            f"no two-sample test on {', '.join(comparison.regions)}: it has no two halves of "
            f"{_FEWEST_PATCHES} patches that share no sky. A smaller spacing, or smaller patches, "
            "may give them."
        )
        return {}
    one = [held.patches[part] for part in parts]
    shown: dict[tuple[str, str], list[np.ndarray]] = {}
    for name, found in real.items():
        own = halves(found, side)
        if min(map(len, own)) < _FEWEST_PATCHES:
            notes.append(f"no two-sample test of {name}: too small for two separate halves")
        else:
            shown["real", name] = [found.patches[part] for part in own]
    # A candidate shows as many patches as a real region does.
    most = int(np.median([len(part) for own in (list(shown.values()) or [one]) for part in own]))
    for name, found in sets.items():
        if name == "reconstructions":
            continue
        if name in tied:
            source = np.repeat(np.arange(len(held)), len(found) // len(held))
            theirs = [found[np.isin(source, part)] for part in parts]
        else:
            theirs = np.array_split(found, 2)
        shown["candidate", name] = [_thinned(part, most) for part in theirs]
    jobs = {}
    for (kind, name), other in shown.items():
        elsewhere = [r.patches for n, r in real.items() if (kind, name) != ("real", n)]
        like_one = np.concatenate(elsewhere) if elsewhere else None
        jobs[kind, name] = {"one": one, "other": tuple(other), "like_one": like_one}
    return jobs


def _run_two_sample(
    comparisons: Sequence[Comparison],
    jobs: Sequence[Mapping[tuple[str, str], dict[str, Any]]],
    seed: int,
    progress: Progress | None,
) -> list[Comparison]:
    total, done, finished = sum(map(len, jobs)), 0, []
    for comparison, work in zip(comparisons, jobs, strict=True):
        found: dict[str, dict[str, TwoSample]] = {"real": {}, "candidate": {}}
        for (kind, name), arguments in work.items():
            if progress is not None:
                progress("two_sample", done, total)
            found[kind][name] = both_ways(**arguments, seed=seed)
            done += 1
        finished.append(
            replace(comparison, two_sample=found["candidate"], real_two_sample=found["real"])
        )
    if progress is not None:
        progress("two_sample", done, total)
    return finished


def _pooled(sets: Sequence[np.ndarray], percentile: float) -> np.ndarray:
    """Percentile over the patches of all sets, each set with the same total weight."""
    values = np.concatenate(sets)
    weights = np.concatenate([np.full(len(s), 1 / len(s)) for s in sets])
    order = np.argsort(values, axis=0)
    ranked = np.take_along_axis(values, order, axis=0)
    # Patches lie in the middle of their weight, the outermost at 0 and 100 %: for equal weights
    # this is what numpy.percentile does.
    place = np.cumsum(weights[order], axis=0) - 0.5 * weights[order]
    place = 100 * (place - place[0]) / (place[-1] - place[0])
    return np.array(
        [np.interp(percentile, place[:, i], ranked[:, i]) for i in range(values.shape[1])]
    )


def _options(size: int, pixel_size: float) -> dict[str, Any]:
    """Bins, bands and high-pass that fit a patch, the same in pixels whatever the pixel size."""
    base = fundamental(size, pixel_size)
    per_pixel = base * size  # multipole of a wave one pixel long
    longest = min(_LONGEST_WAVE, _WAVE_OF_SIZE * size)
    octaves = math.floor(math.log2(longest / _SHORTEST_WAVE) + _MARGIN)
    edges = per_pixel * (1 + _MARGIN) / (_SHORTEST_WAVE * 2.0 ** np.arange(octaves, -1, -1))
    # Minkowski functionals need 8 pixels that edges do not reach.
    lowest = per_pixel * (1 + _MARGIN) / min(_WAVE_OF_SIZE * size, size - 8)
    return {
        "bands": list(itertools.pairwise(edges)),
        # ℓ = 200 is the field's choice; small patches cannot have it.
        "lmin_high_pass": max(200.0, lowest),
        # Beyond, the beams of the maps decide, not the dust.
        "bins": ell_bins(size, pixel_size, base, per_pixel / _SHORTEST_WAVE, n=_SPECTRUM_BINS),
    }


def _all_examples(
    held_out: np.ndarray, sets: Mapping[str, np.ndarray], tied: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Up to eight standardised patches of each set, spread over it."""
    shown = np.linspace(0, len(held_out) - 1, min(8, len(held_out))).astype(int)
    examples = {"held_out": held_out[shown]}
    for name, found in sets.items():
        # The first of those that were drawn for the patches shown.
        first = shown * (len(found) // len(held_out))
        examples[name] = found[first] if name in tied else _thinned(found, 8)
    return {name: standardise(found.astype(np.float64)) for name, found in examples.items()}


def _block_means(generator: Generator, patches: np.ndarray) -> np.ndarray:
    """Block means of the patches on the coarsest grid that the network was trained from."""
    size = patches.shape[-1]
    grid = generator.latent_shapes(size)[1][0]
    block = size // grid
    return patches.reshape(-1, grid, block, grid, block).mean(axis=(2, 4))


def _conditional(
    generator: Generator, coarse: np.ndarray, size: int, n: int, seed: int, environment: float
) -> np.ndarray:
    """Samples for coarse maps, in their units: one after the other, as many for each."""
    repeats = max(-(-n // len(coarse)), 2)
    coarse = np.repeat(coarse, repeats, axis=0)
    # Other latents than those of the prior samples.
    return generator.sample(len(coarse), size, seed + 1, coarse=coarse, environment=environment)


def _reconstruct(generator: Generator, patches: np.ndarray, environment: float) -> np.ndarray:
    """Decoded posterior means."""
    decoded = []
    for start in range(0, len(patches), BATCH):
        part = patches[start : start + BATCH].astype(np.float32)
        posterior = generator.network.encode(part, np.full(len(part), environment, np.float32))
        means = [np.asarray(mean) for mean, _ in posterior]
        decoded.append(generator.decode(means, environment=environment))
    return np.concatenate(decoded)


def _measure_conditioning(
    held_out: np.ndarray,
    drawn: np.ndarray,
    coarse: np.ndarray,
    pixel_size: float,
    bins: np.ndarray,
) -> Conditioning:
    size, grid = held_out.shape[-1], coarse.shape[-1]
    repeats = len(drawn) // len(held_out)
    first, second = drawn[::repeats], drawn[1::repeats]
    split = fundamental(size, pixel_size) * grid / 2
    # Waves of a block and shorter are all the network's own, and small enough a patch's edges.
    small_from = 2 * split * (1 + _MARGIN)
    inner = np.quantile(coarse, [1 / 3, 2 / 3])
    edges = np.array([-np.inf, *inner, np.inf])
    held_rms, held_kurtosis = moments_by_brightness(held_out, pixel_size, small_from, coarse, edges)
    rms, kurtosis = moments_by_brightness(
        drawn, pixel_size, small_from, np.repeat(coarse, repeats, axis=0), edges
    )
    return Conditioning(
        split=split,
        with_held_out=flat_correlation(held_out, first, pixel_size, bins)[1],
        between_samples=flat_correlation(first, second, pixel_size, bins)[1],
        small_from=small_from,
        held_out_rms=held_rms,
        held_out_kurtosis=held_kurtosis,
        samples_rms=rms,
        samples_kurtosis=kurtosis,
    )


def _control(
    patches: np.ndarray, pixel_size: float, n: int, rng: np.random.Generator
) -> np.ndarray:
    size = patches.shape[-1]
    repeats = -(-n // len(patches))
    return modulated_gaussian(
        np.repeat(patches, repeats, axis=0),
        pixel_size,
        rng,
        modulation_fwhm=0.5 * size * pixel_size,
        split=max(100.0, fundamental(size, pixel_size)),
    )


def _real_sets(
    held: TrainingMap,
    held_patches: PatchSet,
    maps: Sequence[TrainingMap],
    regions: Sequence[str],
    real_regions: Sequence[str] | None,
    size: int,
    spacing: float,
    notes: list[str],
) -> dict[str, PatchSet]:
    """Patches of each real region that may be compared with the held-out ones."""
    found = {}
    held_labels = [held.sky.region_names.index(name) for name in set(held_patches.region)]
    for m in maps:
        ratio = m.pixel_size / held.pixel_size
        similar = 1 / SCALE_RANGE <= ratio <= SCALE_RANGE
        for name in m.sky.region_names:
            if name in regions or (
                name not in real_regions if real_regions is not None else not similar
            ):
                continue
            try:
                patches = _grid(m.sky, size, m.pixel_size, spacing, [name])
            except ValueError as error:
                notes.append(f"{name} left out as a reference: {error}")
                continue
            if m.sky is not held.sky:
                patches = patches.select(~_on_held_out(patches, held, held_labels, size))
            if len(patches) >= 2:
                found[name] = patches
            else:
                notes.append(
                    f"{name} left out as a reference: fewer than two patches off the held-out sky"
                )
    if not found:
        raise ValueError(
            f"no real region is left to compare {held.sky.name!r} with: give another map with "
            f"pixels of {held.pixel_size / SCALE_RANGE:.2g}' to "
            f"{held.pixel_size * SCALE_RANGE:.2g}', hold out fewer regions, or take smaller patches"
        )
    return found


def _on_held_out(
    patches: PatchSet, held: TrainingMap, labels: Sequence[int], size: int
) -> np.ndarray:
    """Whether each patch has a point in the held-out regions; a lattice of 9 x 9 is looked at."""
    lattice = 9
    step = size / (lattice - 1)
    return np.array(
        [
            np.isin(
                held.sky.region(*tangent_grid(lon, lat, lattice, step * pixel_size, angle)), labels
            ).any()
            for lon, lat, pixel_size, angle in zip(
                patches.lon, patches.lat, patches.pixel_size, patches.angle, strict=True
            )
        ],
        bool,
    )


def _round(values: Any) -> Any:
    """Numbers, or arrays of them, with three figures: what a card needs."""
    if np.ndim(values):
        return [_round(value) for value in values]
    return float(f"{values:.3g}")
