"""Fits, posteriors and Gaussian realisations of patches of the shipped network."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from pysm_vae.stats.spectra import mirror_wavenumbers, standardise
from pysm_vae.stats.wiener import constrained_realisations, mirror_power
from pysm_vae.vae import inference, masks
from pysm_vae.vae.generator import load_generator
from pysm_vae.vae.inference import (
    ConvergenceWarning,
    Observation,
    PatchModel,
    Posterior,
    _between_means,
    fill_holes,
    maximise,
    sample_posterior,
)

SIZE = 32


@pytest.fixture(scope="module")
def model() -> PatchModel:
    return PatchModel(load_generator("octave"), SIZE, scale_spread=0.2)


@pytest.fixture(scope="module")
def truth(model) -> np.ndarray:
    return model.sample(1, seed=4)[0]


@pytest.fixture(scope="module")
def problem(model, truth) -> Observation:
    rng = np.random.Generator(np.random.Philox(11))
    mask = masks.circle(SIZE, 5)
    return Observation(truth, 0.2, mask).simulate(truth, rng)


@pytest.fixture(scope="module")
def posterior(model, problem) -> Posterior:
    pytest.importorskip("tensorflow_probability")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return sample_posterior(model, problem, draws=208, warmup=120, seed=2)


class TestObservation:
    def test_default_mask_is_where_data_are(self, truth):
        data = truth.copy()
        data[3, 4] = np.nan
        seen = Observation(data, 0.1)
        assert seen.mask.sum() == truth.size - 1
        assert not seen.mask[3, 4]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data": np.zeros((4, 5))}, "square patch"),
            ({"data": np.ones((SIZE, SIZE))}, "constant"),
            ({"mask": np.zeros((SIZE, SIZE), bool)}, "hides every pixel"),
            ({"mask": np.ones((3, 3), bool)}, "the mask has the shape"),
            ({"mask": np.full((SIZE, SIZE), 0.5)}, "boolean"),
            ({"noise": 0.0}, "positive and finite"),
            ({"noise": np.nan}, "positive and finite"),
            ({"noise": np.zeros((SIZE, SIZE))}, "positive and finite"),
            ({"noise": np.ones(7)}, "noise has the shape"),
            ({"beam": -1.0}, "not negative"),
            ({"beam": np.ones(3)}, "beam has the shape"),
        ],
    )
    def test_refused(self, truth, change, message):
        with pytest.raises(ValueError, match=message):
            Observation(**{"data": truth, "noise": 0.1, **change})

    def test_data_that_are_not_finite_are_refused(self, truth):
        data = truth.copy()
        data[0, 0] = np.inf
        with pytest.raises(ValueError, match="1 pixels that the mask does not hide"):
            Observation(data, 0.1, np.ones(data.shape, bool))

    def test_noise_has_the_spectrum_asked_for(self, truth, rng):
        power = 0.01 * (np.arange(1, SIZE // 2 + 1) / 4.0) ** -2
        seen = Observation(truth, power)
        noise = np.array([seen.simulate(truth, rng).data - truth for _ in range(200)])
        found = mirror_power(noise)
        number = mirror_wavenumbers(SIZE)
        for cycles in (2, 6, 12):
            near = np.abs(number - cycles) < 0.3
            assert found[near].mean() == pytest.approx(power[cycles - 1], rel=0.1)
        assert seen.rms == pytest.approx(noise.std(), rel=0.1)

    def test_beam_dims_a_wave_as_the_formula_says(self, truth):
        seen = Observation(truth, 0.1, beam=3.0)
        wave = np.cos(np.pi * 12 * (np.arange(SIZE) + 0.5) / SIZE)[None].repeat(SIZE, 0)
        sigma = 3.0 / np.sqrt(8 * np.log(2))
        # Twelve half-waves a patch: six cycles.
        expected = np.exp(-0.5 * (2 * np.pi * 6 / SIZE * sigma) ** 2)
        np.testing.assert_allclose(seen.seen(wave), expected * wave, atol=1e-12)


class TestPatchModel:
    def test_latents_give_the_patches_back(self, model):
        patches = model.sample(2, seed=1)
        latents = model.encode(patches, seed=3)
        np.testing.assert_allclose(model.decode(latents), patches, atol=2e-5)

    def test_latents_are_about_standard_normal(self):
        """Of patches of the size that the encoder was trained on; it is not exact."""
        model = PatchModel(load_generator("octave"), 64)
        top, *octaves = model.encode(model.sample(16, seed=2))[1:]
        assert top.std() == pytest.approx(1, abs=0.4)
        for each in octaves:
            latents, left = each[..., :-3], each[..., -3:]
            assert latents.std() == pytest.approx(1, abs=0.2)
            # What an approximate draw of latents gets wrong is in what it leaves to the noise.
            assert 1 < left.std() < 2.5

    def test_prior_is_that_of_the_generator(self, model):
        """The variance of whose coarsest map scatters less than ours, a Gaussian field's."""
        ours = standardise(model.sample(400, seed=5))
        theirs = model.generator.sample(400, SIZE, seed=5)
        ratio = (mirror_power(ours)[0] / np.maximum(mirror_power(theirs)[0], 1e-12))[8:]
        np.testing.assert_allclose(ratio, 1, atol=0.4)
        assert np.median(ratio) == pytest.approx(1, abs=0.2)

    def test_noise_of_the_decoder_adds_no_power(self, model):
        noisy = PatchModel(model.generator, SIZE, scale_spread=0.2, residual=(0.2, 0.3, 0.4, 0.5))
        power = [mirror_power(each.sample(200, seed=6))[0] for each in (model, noisy)]
        np.testing.assert_allclose(power[1][8:] / power[0][8:], 1, atol=0.25)
        plain = PatchModel(
            model.generator, SIZE, scale_spread=0.2, calibrated=False, residual=noisy.residual
        )
        fine = mirror_power(plain.sample(200, seed=6))[0][-8:].mean()
        # Unfiltered, it adds twice as much as is tolerated above, at least.
        assert fine > 1.5 * power[0][-8:].mean()

    def test_seeds(self, model):
        np.testing.assert_array_equal(model.sample(1, seed=7), model.sample(1, seed=7))
        assert not np.allclose(model.sample(1, seed=7), model.sample(1, seed=8))

    def test_what_is_left_over_is_counted_in_units_of_the_noise(self, model):
        residual = np.array([0.2, 0.3, 0.4, 0.5])
        wide = PatchModel(model.generator, SIZE, calibrated=False, residual=residual)
        usual = PatchModel(model.generator, SIZE, calibrated=False)
        patch = model.sample(1, seed=6)
        for ours, theirs, octave in zip(
            wide.encode(patch)[2:], usual.encode(patch)[2:], (3, 2, 1, 0), strict=True
        ):
            expected = theirs[..., -3:] * usual.residual[octave] / residual[octave]
            np.testing.assert_allclose(ours[..., -3:], expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"scale": 0.0}, "scale=0.0"),
            ({"mean_spread": -1.0}, "mean_spread"),
            ({"residual": 0.0}, "residual"),
            ({"residual": (0.1, 0.2)}, "4 octaves, fine to coarse"),
            ({"mean": np.nan}, "mean=nan"),
            ({"size": 40}, "multiple of 16"),
            ({"environment": 2.0}, "environment"),
        ],
    )
    def test_refused(self, change, message):
        with pytest.raises(ValueError, match=message):
            PatchModel(load_generator("octave"), **{"size": SIZE, **change})

    def test_needs_a_ladder(self):
        with pytest.raises(ValueError, match="'octave' network"):
            PatchModel(load_generator("thorne2021"))

    def test_encode_refuses(self, model):
        with pytest.raises(ValueError, match="not finite"):
            model.encode(np.full((1, SIZE, SIZE), np.nan))
        with pytest.raises(ValueError, match="have the shape"):
            model.encode(np.zeros((1, 16, 16)))


class TestLadder:
    def test_centred_cells_have_the_same_density(self, model, truth):
        """Of one patch and its latents, whichever way the details are written."""
        # So noisy that no cell is centred; then so clear on the left that the coarsest are, there.
        seen = Observation(truth, 100.0)
        level, top, *octaves = model.encode(truth[None].astype(float))
        scale = float(np.exp(level[0, 1]))
        coarse = scale * (top.reshape(1, -1) @ model.root.T) + level[0, 0]
        plain = inference._Ladder(model, seen)
        values = np.concatenate([level[0, 1:], coarse.ravel(), *[o.ravel() for o in octaves]])
        patch, residuals, jacobian = plain.climb(values[None].astype(np.float32))
        # The coarsest octave's details, from the patch itself.
        from pysm_vae.stats.spectra import mirror_filter

        block = SIZE // 2 // model.grid
        field = mirror_filter(np.asarray(patch, float) - level[0, 0], 1 / model.transfer)[0]
        finer = field.reshape(2 * model.grid, block, 2 * model.grid, block).mean(axis=(1, 3))
        a, b = finer[0::2, 0::2], finer[0::2, 1::2]
        c, d = finer[1::2, 0::2], finer[1::2, 1::2]
        details = 0.25 * np.stack([a - b + c - d, a + b - c - d, a - b - c + d], axis=-1)
        other = [each.copy() for each in octaves]
        noise = np.full(truth.shape, 100.0)
        noise[:, : SIZE // 2] = 0.015 * 2**model.octaves
        clear = Observation(truth, noise)
        centred = inference._Ladder(model, clear)
        left = np.arange(model.grid) < model.grid // 2
        for number, cells in enumerate(centred.centred):
            assert (cells == (left if number == 0 else False)).all()
        other[0][0, :, left, -3:] = details[:, left].swapaxes(0, 1)
        moved = np.concatenate([level[0, 1:], coarse.ravel(), *[o.ravel() for o in other]])
        again, same, more = centred.climb(moved[None].astype(np.float32))
        np.testing.assert_allclose(again, patch, atol=1e-3)
        # The last are the misfit, which the noise is in.
        prior = np.asarray(residuals).shape[1] - truth.size
        np.testing.assert_allclose(same[:, :prior], residuals[:, :prior], atol=0.02)
        count = 3 * model.grid**2 // 2
        assert float(more[0] - jacobian[0]) == pytest.approx(-count * level[0, 1], rel=1e-4)


class TestMaximise:
    def test_starts_agree_and_fit(self, model, truth, rng):
        mask = masks.circle(SIZE, 5)
        seen = Observation(truth, 0.2, mask).simulate(truth, rng)
        steps = []
        found = maximise(model, seen, starts=2, progress=lambda *now: steps.append(now))
        assert found.spread < 0.05
        assert 0.3 < found.chi2 < 1.1
        error = (found.patch - truth)[mask]
        # It is nearer to the truth than the data are.
        assert error.std() < 0.8 * (seen.data - truth)[mask].std()
        assert steps[-1][1] == steps[-1][2]

    def test_stationary_noise_and_a_beam(self, model, truth, rng):
        power = 0.02 * (np.arange(1, SIZE // 2 + 1) / 8.0) ** -1
        seen = Observation(truth, power, masks.edge(SIZE, 0.7), beam=2.0).simulate(truth, rng)
        found = maximise(model, seen)
        assert 0.2 < found.chi2 < 1.3

    def test_refused(self, model, truth):
        with pytest.raises(ValueError, match="16 pixels a side"):
            maximise(model, Observation(truth[:16, :16], 0.1))
        with pytest.raises(ValueError, match="starts=0"):
            maximise(model, Observation(truth, 0.1), starts=0)


class TestPosterior:
    def test_intervals_hold_the_truth(self, posterior, problem, truth):
        low, high = posterior.interval(0.95)
        inside = (truth > low) & (truth < high)
        assert inside[problem.mask].mean() > 0.88
        assert inside[~problem.mask].mean() > 0.6
        score = ((posterior.mean - truth) / posterior.std)[problem.mask]
        assert 0.8 < score.std() < 1.3

    def test_holes_are_wider_than_what_is_seen(self, posterior, problem):
        # Data alone would leave the noise.
        assert posterior.std[problem.mask].mean() < 0.2
        assert posterior.std[14:18, 14:18].mean() > 1.5 * posterior.std[problem.mask].mean()

    def test_draws_fit_the_data(self, posterior, problem):
        chi2 = np.mean([problem.chi2(each) for each in posterior.draws(40)])
        assert chi2 == pytest.approx(1, abs=0.15)

    def test_diagnostics(self, posterior):
        says = posterior.diagnostics
        assert says["rhat_median"] < 1.2
        assert says["ess_median"] > 25
        assert 0.5 < says["acceptance"] < 1
        assert says["divergences"] == 0

    def test_saved_and_loaded(self, posterior, tmp_path):
        path = tmp_path / "p.npz"
        posterior.save(path)
        again = Posterior.load(path)
        np.testing.assert_array_equal(again.draws(7), posterior.draws(7))
        assert again.diagnostics == posterior.diagnostics
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match="damaged"):
            Posterior.load(path)
        with pytest.raises(FileNotFoundError, match="no posterior"):
            Posterior.load(tmp_path / "none.npz")
        with pytest.raises(ValueError, match=r"\.npz"):
            posterior.save(tmp_path / "p.txt")

    def test_refused(self, posterior):
        with pytest.raises(ValueError, match="1 to 208 draws"):
            posterior.draws(209)
        with pytest.raises(ValueError, match="probability"):
            posterior.interval(95)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"chains": 1}, "chains=1"),
            ({"draws": 7}, "draws=7"),
            ({"draws": 1001}, "draws=1001"),
            ({"warmup": 3}, "warmup=3"),
        ],
    )
    def test_bad_options(self, model, problem, options, message):
        with pytest.raises(ValueError, match=message):
            sample_posterior(model, problem, **options)

    def test_says_how_to_get_the_library(self, model, problem, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "tensorflow_probability", None)
        with pytest.raises(ModuleNotFoundError, match="inference"):
            sample_posterior(model, problem)


class TestBetweenMeans:
    def test_of_one_is_itself(self, rng):
        matrix = np.cov(rng.standard_normal((5, 40)))
        np.testing.assert_array_equal(_between_means([matrix]), matrix)

    def test_of_matrices_that_share_their_axes(self, rng):
        axes = np.linalg.qr(rng.standard_normal((6, 6)))[0]
        values = np.exp(3 * rng.standard_normal((4, 6)))
        found = _between_means([(axes * each) @ axes.T for each in values])
        expected = np.sqrt(values.mean(axis=0) / (1 / values).mean(axis=0))
        np.testing.assert_allclose(found, (axes * expected) @ axes.T, rtol=1e-9, atol=1e-9)

    def test_turns_with_the_coordinates(self, rng):
        matrices = [np.cov(rng.standard_normal((5, 40))) for _ in range(3)]
        other = rng.standard_normal((5, 5))
        turned = _between_means([other @ each @ other.T for each in matrices])
        np.testing.assert_allclose(turned, other @ _between_means(matrices) @ other.T, rtol=1e-8)


class TestGaussian:
    def test_mean_and_spread_are_those_of_the_closed_form(self, rng):
        """Against the dense solution of a small patch."""
        size = 8
        number = mirror_wavenumbers(size)
        power = (1 + number) ** -2.0
        power[0, 0] = 0.0
        mask = masks.circle(size, 2)
        data = rng.standard_normal((size, size))
        seen = Observation(data, 0.3, mask)
        drawn = constrained_realisations(
            power, seen, 3000, rng, mean=0.2, mean_spread=0.5, fit_amplitude=False
        )
        from scipy import fft

        basis = fft.idctn(np.eye(size**2).reshape(-1, size, size), axes=(1, 2), norm="ortho")
        basis = basis.reshape(size**2, size**2).T
        prior = power.copy()
        prior[0, 0] = size**2 * 0.25
        covariance = basis @ np.diag(prior.ravel()) @ basis.T
        chosen = mask.ravel()
        inner = covariance[np.ix_(chosen, chosen)] + 0.09 * np.eye(chosen.sum())
        gain = covariance[:, chosen] @ np.linalg.inv(inner)
        mean = 0.2 + gain @ (seen.data.ravel()[chosen] - 0.2)
        variance = np.diag(covariance - gain @ covariance[chosen])
        flat = drawn.reshape(len(drawn), -1)
        np.testing.assert_allclose(flat.mean(axis=0), mean, atol=5 * np.sqrt(variance.max() / 3000))
        np.testing.assert_allclose(flat.var(axis=0), variance, rtol=0.2)

    def test_amplitude_is_found(self, rng):
        size = 32
        power = (1 + mirror_wavenumbers(size)) ** -3.0
        power[0, 0] = 0.0
        from scipy import fft

        modes = rng.standard_normal((size, size)) * np.sqrt(9 * power)
        truth = fft.idctn(modes, norm="ortho")
        noise = 0.1 * truth.std()
        seen = Observation(truth, noise, masks.circle(size, 6)).simulate(truth, rng)
        drawn = constrained_realisations(power, seen, 20, rng, mean_spread=truth.std())
        assert mirror_power(drawn)[power > 0].sum() == pytest.approx(
            mirror_power(truth[None])[power > 0].sum(), rel=0.15
        )

    def test_refused(self, rng):
        data = rng.standard_normal((8, 8))
        with pytest.raises(ValueError, match="the power has the shape"):
            constrained_realisations(np.ones((4, 4)), Observation(data, 1.0), 1, rng)
        with pytest.raises(ValueError, match="no spectrum"):
            constrained_realisations(np.ones((8, 8)), Observation(data, np.ones(4)), 1, rng)


def test_holes_are_filled_from_around_them():
    y, x = np.mgrid[:32, :32] / 32
    plane = 2 * x + y
    mask = masks.circle(32, 6)
    filled = fill_holes(np.where(mask, plane, np.nan), mask)
    np.testing.assert_array_equal(filled[mask], plane[mask])
    assert np.abs(filled - plane)[~mask].max() < 0.3
