"""The networks: what is a bound must be one, and what is kept must be kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from keras import ops
from scipy import integrate, ndimage, special, stats
from synthetic import NETWORK, SIZE, field, make_network

from pysm_vae.vae import networks
from pysm_vae.vae.networks import build_network, haar_analysis, haar_synthesis


@pytest.fixture(scope="module")
def octave() -> networks.Octave:
    return make_network()


@pytest.fixture(scope="module")
def thorne() -> networks.Thorne2021:
    return build_network("thorne2021", size=32, latents=8)


@pytest.fixture(scope="module")
def lively() -> networks.Octave:
    """An untrained network of the default design whose outputs depend on all of their inputs."""
    network = build_network("octave", channels=6, encoder_channels=4, critic_weight=0.0)
    drawn = np.random.default_rng(3)
    for variable in network.trainable_variables:
        variable.assign(drawn.normal(0.0, 0.15, variable.shape))
    return network


@pytest.fixture
def patches(rng) -> np.ndarray:
    drawn = np.stack([field(rng, SIZE) for _ in range(6)])
    drawn -= drawn.mean(axis=(1, 2), keepdims=True)
    return (drawn / drawn.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def inputs(patches: np.ndarray) -> dict[str, np.ndarray]:
    """Patches half of which show clouds."""
    return {
        "patches": patches,
        "environment": (np.arange(len(patches)) % 2).astype(np.float32),
    }


def normals(rng, network, size: int, n: int = 3) -> list[np.ndarray]:
    shapes = network.latent_shapes(size)
    return [rng.standard_normal((n, *shape)).astype(np.float32) for shape in shapes]


def block_means(fields: np.ndarray, block: int) -> np.ndarray:
    n, rows, columns = fields.shape
    blocks = fields.reshape(n, rows // block, block, columns // block, block)
    return blocks.mean(axis=(2, 4))


def test_haar_round_trip_and_energy(rng):
    fine = rng.standard_normal((2, 12, 8, 1)).astype(np.float32)
    coarse, details = (np.asarray(part) for part in haar_analysis(fine))
    np.testing.assert_allclose(haar_synthesis(coarse, details), fine, atol=1e-6)
    # Orthogonal: the four coefficients of a block carry a quarter of its energy.
    energy = coarse[..., 0] ** 2 + (details**2).sum(axis=-1)
    blocks = (fine[..., 0] ** 2).reshape(2, 6, 2, 4, 2).sum(axis=(2, 4))
    np.testing.assert_allclose(4 * energy, blocks, rtol=1e-5)
    # And the other way round: any coefficients are those of their own synthesis.
    again = haar_analysis(haar_synthesis(coarse[:, :, ::-1], details))
    np.testing.assert_allclose(again[0], coarse[:, :, ::-1], atol=1e-6)
    np.testing.assert_allclose(again[1], details, atol=1e-6)


def test_haar_of_a_known_block():
    coarse, details = haar_analysis(np.array([1, 2, 3, 10], np.float32).reshape(1, 2, 2, 1))
    assert float(coarse[0, 0, 0, 0]) == 4.0
    # Columns (1 + 3 - 2 - 10)/4, rows (1 + 2 - 3 - 10)/4, diagonals (1 + 10 - 2 - 3)/4.
    np.testing.assert_allclose(details[0, 0, 0], [-2.0, -2.5, 1.5])


def test_kl_is_the_integral():
    mean = np.array([[0.3, -1.2], [0.0, 2.0]], np.float32)
    log_scale = np.array([[-0.5, 0.4], [0.0, -2.0]], np.float32)

    def integral(m: float, s: float) -> float:
        p, q = stats.norm(m, s), stats.norm(0, 1)
        return integrate.quad(
            lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), m - 12 * s, m + 12 * s
        )[0]

    expected = [
        sum(integral(m, np.exp(s)) for m, s in zip(*row, strict=True))
        for row in zip(mean, log_scale, strict=True)
    ]
    np.testing.assert_allclose(networks._kl(mean, log_scale), expected, rtol=1e-5)
    assert float(networks._kl(np.zeros((1, 4)), np.zeros((1, 4)))[0]) == 0.0


def test_likelihood_is_a_normalised_density(rng):
    residual = rng.standard_normal((3, 4, 4)).astype(np.float32)
    expected = stats.norm(0, np.exp(-0.7)).logpdf(residual).sum(axis=(1, 2))
    np.testing.assert_allclose(networks._log_normal(residual, -0.7), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["octave", "thorne"])
def test_elbo_has_one_normalisation(name, request, patches):
    network = request.getfixturevalue(name)
    if name == "thorne":
        patches = np.tile(patches, (1, 2, 2))
    terms = {key: np.asarray(value) for key, value in network(inputs(patches)).items()}
    assert {value.shape for value in terms.values()} == {(len(patches),)}
    # A patch's KL term is its own, and it is the sum over its latents, whatever the batch.
    alone = np.asarray(network(inputs(patches[:1]))["kl"])
    np.testing.assert_allclose(terms["kl"][:1], alone, rtol=1e-4)
    if name == "thorne":
        ((mean, log_scale),) = network.encode(patches)
        np.testing.assert_allclose(terms["kl"], networks._kl(mean, log_scale), rtol=1e-5)
        posterior = np.asarray(mean)
        assert posterior.shape == (len(patches), 8)
    pixels = patches[0].size
    minus_elbo = sum(
        sign * terms[key].mean() / pixels
        for sign, key in ((1, "kl"), (-1, "likelihood"), (1, "score"), (1, "rivalry"))
    )
    np.testing.assert_allclose(
        network.compute_loss(x=inputs(patches), y_pred=terms), minus_elbo, rtol=1e-5
    )
    # The same patches twice over: the same loss.
    twice = {key: np.concatenate([value, value]) for key, value in terms.items()}
    loss = network.compute_loss(x=inputs(np.concatenate([patches, patches])), y_pred=twice)
    np.testing.assert_allclose(loss, minus_elbo, rtol=1e-5)


def test_elbo_bounds_the_evidence(rng):
    """A linear Gaussian model in closed form: its ELBO is below the evidence, by the KL gap."""
    network = build_network("octave", **NETWORK, score_weight=0.0, critic_weight=0.0, residual=0.5)
    for variable in network.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    patches = rng.standard_normal((64, SIZE, SIZE)).astype(np.float32)
    terms = {key: np.asarray(value) for key, value in network(inputs(patches)).items()}
    # Nothing is decoded: the details' density is N(0, 0.5) whatever the latents.
    coarse, evidence = patches[..., None], 0.0
    for _ in range(NETWORK["octaves"]):
        coarse, details = haar_analysis(coarse)
        evidence = evidence + stats.norm(0, 0.5).logpdf(np.asarray(details)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(terms["likelihood"], evidence, rtol=1e-5)
    # Posterior N(0, exp(-1)) at each of 2 x (64 + 16) latents.
    gap = 160 * (0.5 * (np.exp(-2) - 1) + 1)
    np.testing.assert_allclose(terms["kl"], gap, rtol=1e-5)


def test_thorne2021_is_the_papers_network():
    network = build_network("thorne2021", size=256)
    shapes = [
        layer.output.shape[1:]
        for layer in network.decoder.layers
        if layer.name.startswith(("deconv", "conv"))
    ]
    assert shapes == [
        (32, 32, 128),
        (64, 64, 64),
        (128, 128, 32),
        (256, 256, 16),
        (256, 256, 1),
    ]
    encoded = [
        layer.output.shape[1:] for layer in network.encoder.layers if layer.name.startswith("conv")
    ]
    assert encoded == [(128, 128, 256), (64, 64, 128), (32, 32, 64)]
    # The paper's 2.34 M are those of the decoder: dense 256 to 16 x 16 x 32, four transposed
    # convolutions with kernel 4, a 1 x 1 convolution, and four numbers a batch-normalised channel.
    channels = (32, 128, 64, 32, 16)
    expected = 256 * 8192 + 8192 + 16 + 1
    for before, after in itertools.pairwise(channels):
        expected += 16 * before * after + after + 4 * before
    assert network.decoder.count_params() == expected == 2_344_193
    assert network.latent_shapes(256) == [(256,)]


def test_thorne2021_reconstructs_its_size(thorne, rng):
    patches = rng.standard_normal((3, 32, 32)).astype(np.float32)
    ((mean, log_scale),) = thorne.encode(patches)
    assert mean.shape == log_scale.shape == (3, 8)
    # It takes an environment as octave does, and pays no heed.
    ((again, _),) = thorne.encode(patches, np.ones(3, np.float32))
    np.testing.assert_array_equal(again, mean)
    assert thorne.decode([mean]).shape == (3, 32, 32)


def test_two_networks_of_a_kind_have_the_same_names():
    one, other = (build_network("thorne2021", size=16, latents=4) for _ in range(2))
    assert [v.path for v in one.variables if "seed" not in v.path] == [
        v.path for v in other.variables if "seed" not in v.path
    ]


@pytest.mark.parametrize("size", [8, 40])
def test_thorne2021_refuses_sizes(size):
    with pytest.raises(ValueError, match="multiple of 16"):
        build_network("thorne2021", size=size)


def test_latent_shapes(octave, thorne):
    assert octave.latent_shapes(16) == [(16,), (4, 4, 2), (8, 8, 2)]
    for size in (18, 4):
        with pytest.raises(ValueError, match="multiple of 4"):
            octave.latent_shapes(size)
    with pytest.raises(ValueError, match="patches of 32 pixels a side, not 64"):
        thorne.latent_shapes(64)
    with pytest.raises(ValueError, match="unknown architecture 'gan'"):
        build_network("gan")


@pytest.mark.parametrize("size", [8, 16, 36])
def test_octave_shapes(octave, rng, size):
    latents = normals(rng, octave, size)
    assert octave.decode(latents).shape == (3, size, size)
    posterior = octave.encode(rng.standard_normal((3, size, size)).astype(np.float32))
    assert [mean.shape for mean, _ in posterior] == [z.shape for z in latents]
    assert [scale.shape for _, scale in posterior] == [z.shape for z in latents]


def test_training_and_encoding_have_one_posterior(octave, patches):
    """The KL term of the ELBO is that of the posterior that `encode` gives."""
    given = inputs(patches)
    posterior = octave.encode(patches, given["environment"])
    expected = sum(np.asarray(networks._kl(*each)) for each in posterior[1:])
    np.testing.assert_allclose(octave(given)["kl"], expected, rtol=1e-4)


def test_octave_encodes_the_coarsest_map_exactly(octave, patches):
    posterior = [mean for mean, _ in octave.encode(patches)]
    decoded = np.asarray(octave.decode(posterior))
    np.testing.assert_allclose(block_means(decoded, 4), block_means(patches, 4), atol=1e-3)


def octaves_of(rng, network, grid: int, depth: int, n: int = 3) -> list[np.ndarray]:
    """Latents of so many octaves of a coarse map."""
    shapes = [(n, grid << i, grid << i, network.latents) for i in range(depth)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def refined(network, coarse: np.ndarray, latents: list[np.ndarray]) -> np.ndarray:
    """As skies are drawn: octave after octave."""
    for level, latent in enumerate(latents):
        coarse = np.asarray(network.refine(coarse, latent, np.zeros(len(coarse), "f4"), level))
    return coarse


@pytest.mark.parametrize("on_sky", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_octave_keeps_the_coarse_map(octave, rng, on_sky, depth):
    coarse = rng.standard_normal((3, 4, 4)).astype(np.float32)
    latents = octaves_of(rng, octave, 4, depth)

    def draw(latents: list[np.ndarray]) -> np.ndarray:
        if on_sky:
            return refined(octave, coarse, latents)
        return np.asarray(octave.decode(latents, coarse=coarse))

    drawn = draw(latents)
    assert drawn.shape == (3, 4 << depth, 4 << depth)
    np.testing.assert_allclose(block_means(drawn, 1 << depth), coarse, atol=1e-5)
    # It is not just the coarse map again, and other latents give another patch.
    assert np.std(drawn - np.kron(coarse, np.ones((1 << depth, 1 << depth)))) > 0.01
    assert np.std(drawn - draw([-z for z in latents])) > 0.01


def test_beams_octave_is_the_last(octave, rng):
    """With the beam the last octave is another one than when more follow."""
    coarse = rng.standard_normal((3, 4, 4)).astype(np.float32)
    latents = octaves_of(rng, octave, 4, 4)
    drawn = np.asarray(octave.decode(latents, coarse=coarse))
    shorter = np.asarray(octave.decode(latents[:-1], coarse=coarse))
    assert np.abs(block_means(drawn, 2) - shorter).max() > 0.01


def test_one_octave_refines_again_and_again(rng):
    network = build_network("octave", **(NETWORK | {"octaves": 1}))
    coarse = rng.standard_normal((3, 4, 4)).astype(np.float32)
    assert refined(network, coarse, octaves_of(rng, network, 4, 2)).shape == (3, 16, 16)


def test_coarsest_map_has_its_variogram(octave):
    octave.variogram.assign([0.4, 0.7])
    root = np.asarray(octave.top_matrix(5), np.float64)
    covariance = root @ root.T
    y, x = np.divmod(np.arange(25), 5)
    variance = np.diag(covariance)
    differences = 0.5 * (variance[:, None] + variance - 2 * covariance)
    lag = np.hypot(x[:, None] - x, y[:, None] - y)
    np.testing.assert_allclose(differences, 0.4 * lag**0.7, atol=1e-4)
    np.testing.assert_allclose(covariance.sum(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize("scatter", [0.0, 0.25])
def test_typical_tops_have_the_variances_of_patches(octave, rng, scatter):
    """Their mean, and the scatter of their logarithm; a Gaussian field's is nearly twice that."""
    latents = rng.standard_normal((4000, 25)).astype(np.float32)
    octave.variogram.assign([0.4, 0.7])
    root = np.asarray(octave.top_matrix(5))
    octave.top_scatter.assign(scatter)
    typical = octave.typical_top(latents)
    octave.top_scatter.assign(0.0)
    gaussian, found = (((each @ root.T) ** 2).mean(axis=1) for each in (latents, typical))
    np.testing.assert_allclose(found.mean(), gaussian.mean(), rtol=0.05)
    assert np.std(np.log(found)) == pytest.approx(scatter, rel=0.15, abs=1e-4)
    assert np.std(np.log(gaussian)) > 0.4
    # The same map but for a factor, and the stronger stays the stronger.
    ratio = typical / latents
    np.testing.assert_allclose(ratio, ratio[:, :1] * np.ones(25), rtol=1e-4)
    if scatter:
        np.testing.assert_array_equal(np.argsort(found)[::400], np.argsort(gaussian)[::400])


def test_adapt_measures_scales_and_variogram(rng):
    network = build_network("octave", **NETWORK)
    # White noise: details of block means halve from octave to octave, values have no correlation.
    network.adapt(rng.standard_normal((400, 16, 16)).astype(np.float32))
    np.testing.assert_allclose(network.detail_scale.numpy(), [0.5, 0.25], rtol=0.03)
    # Block means of 4 x 4 pixels have variance 1/16 at any lag: g = 1/16, h at its lower limit.
    np.testing.assert_allclose(network.variogram.numpy(), [1 / 16, 0.05], rtol=0.05)
    # The variance of 16 independent ones: chi-square of 15 degrees of freedom.
    expected = np.sqrt(special.polygamma(1, 15 / 2))
    np.testing.assert_allclose(network.top_scatter.numpy(), expected, rtol=0.1)


@pytest.mark.parametrize("width", [1, 3])
def test_energy_score_is_proper(rng, width):
    """Its mean is least for the distribution of the data: not a blurred, nor a noisier one."""

    def draw(scale: float, mean: float = 0.0) -> np.ndarray:
        return (mean + scale * rng.standard_normal((64, 16, 16, 3))).astype(np.float32)

    def score(scale: float, mean: float = 0.0) -> float:
        found = networks._energy_distance(draw(1.0), draw(scale, mean), draw(scale, mean), width)
        assert found.shape == (64,)
        return float(ops.mean(found))

    right = score(1.0)
    for wrong in ({"scale": 0.6}, {"scale": 0.01}, {"scale": 1.5}, {"scale": 1.0, "mean": 0.5}):
        assert score(**wrong) > right + 0.02, wrong


def test_energy_score_in_closed_form(rng):
    """One number a pixel: E|x - s| - E|s - s'|/2 with normals is (sqrt(1 + s^2) - s/sqrt 2)..."""
    truth, one, other = (rng.standard_normal((8, 64, 64, 1)).astype(np.float32) for _ in range(3))
    scale = 0.5
    found = networks._energy_distance(truth, scale * one, scale * other)
    # E|N(0, v)| = sqrt(2 v / pi).
    expected = np.sqrt(2 / np.pi) * (np.sqrt(1 + scale**2) - 0.5 * np.sqrt(2) * scale)
    np.testing.assert_allclose(float(ops.mean(found)), expected, rtol=0.01)


def test_ridge_filters_see_ridges(rng):
    """Each answers most to a ridge along its own direction, and to no constant or gradient."""
    y, x = np.mgrid[:24, :24] - 11.5
    for number, angle in enumerate(np.pi / 6 * np.arange(6)):
        ridge = np.exp(-0.5 * ((y * np.cos(angle) - x * np.sin(angle)) / 0.9) ** 2)
        tilted = (ridge + 3.0 + 0.2 * x - 0.1 * y)[None, ..., None].astype(np.float32)
        response = np.asarray(networks._texture(tilted)[0])[0]
        assert response[9, 9].argmax() == number
        flat = np.asarray(networks._texture(tilted - ridge[None, ..., None].astype(np.float32))[0])
        np.testing.assert_allclose(flat, 0, atol=1e-5)
    norms = (networks._RIDGES**2).sum(axis=(0, 1))
    np.testing.assert_allclose(norms, 1, rtol=1e-6)


def test_texture_of_white_noise(rng):
    """Unit filters of Gaussian white noise: standard normal responses, no kurtosis or skewness."""
    noise = rng.standard_normal((16, 70, 70, 1)).astype(np.float32)
    ridges, _, patch, uneven, _ = (np.asarray(part) for part in networks._texture(noise))
    assert ridges.shape == (16, 64, 64, 6)
    # No direction stands out, but for the scatter of the patches.
    assert uneven.shape == (16, 6)
    np.testing.assert_allclose(uneven.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(ridges.std(), 1, rtol=0.02)
    modulus, kurtosis, skewness, scatter = np.split(patch.mean(axis=0), 4)
    np.testing.assert_allclose(modulus, np.log(np.sqrt(2 / np.pi)), atol=0.03)
    np.testing.assert_allclose(kurtosis, 0.5 * np.log(3.1), atol=0.03)
    np.testing.assert_allclose(skewness, 0, atol=0.02)
    assert (scatter > 0).all()


def test_texture_score_prefers_the_right_direction(rng):
    def striped(axis: int) -> tuple:
        noise = ndimage.gaussian_filter1d(rng.standard_normal((32, 40, 40, 1)), 3.0, axis=axis)
        return networks._texture((noise / noise.std()).astype(np.float32))

    truth = striped(1)
    right = networks._texture_score(truth, striped(1), striped(1))
    wrong = networks._texture_score(truth, striped(2), striped(2))
    assert right.shape == (32,)
    assert float(ops.mean(right)) < float(ops.mean(wrong)) - 0.05


def test_texture_score_sees_patches_that_have_a_direction(rng):
    """Stripes along either axis, and their mixture patch by patch or place by place."""

    def noise(axis: int) -> np.ndarray:
        drawn = ndimage.gaussian_filter1d(rng.standard_normal((256, 32, 32, 1)), 0.5, axis=axis)
        return drawn / drawn.std()

    def mixed(share: np.ndarray) -> tuple:
        return networks._texture((share * noise(1) + (1 - share) * noise(2)).astype(np.float32))

    def by_patch() -> np.ndarray:
        return rng.integers(0, 2, (256, 1, 1, 1))

    def by_place() -> np.ndarray:
        return np.kron(rng.integers(0, 2, (256, 4, 4)), np.ones((1, 8, 8)))[..., None]

    truth = mixed(by_patch())
    # The fourth part is of the patch's directions alone.
    spread = [np.asarray(mixed(share())[3]).std() for share in (by_patch, by_place)]
    assert spread[0] > 1.5 * spread[1]
    right = networks._texture_score(truth, mixed(by_patch()), mixed(by_patch()))
    wrong = networks._texture_score(truth, mixed(by_place()), mixed(by_place()))
    assert float(ops.mean(right)) < float(ops.mean(wrong)) - 0.05


def an_octave(field: np.ndarray) -> networks._Drawn:
    """What scores see of maps ``(n, 2m, 2m)``."""
    coarse, details = haar_analysis(field[..., None].astype(np.float32))
    return networks._Drawn(coarse, details, field[..., None].astype(np.float32))


def summary_of(field: np.ndarray) -> np.ndarray:
    return np.asarray(networks._summary(an_octave(field)))


def test_summary_of_white_noise(rng):
    """Of normal numbers the finest band has 4 (1 - 1/9) of their variance, what is sharp 4 + 1."""
    white = rng.standard_normal((3, 256, 256))
    energy, kurtosis, skewness, unevenness, with_brightness, fit, sharpness = summary_of(white).T
    np.testing.assert_allclose(energy, 3 * np.log(32 / 9), atol=0.1)
    np.testing.assert_allclose(kurtosis, 4 * np.log(3.1), atol=0.15)
    # Details have a quarter of it.
    np.testing.assert_allclose(fit, 6 * np.log(4 * 32 / 9), atol=0.15)
    np.testing.assert_allclose(sharpness, 6 * np.log(5 * 9 / 32), atol=0.15)
    for each in (skewness, with_brightness):
        np.testing.assert_allclose(each, 0, atol=0.2)
    # Twice as strong it has four times the energy, and nothing else is another.
    louder = summary_of(2 * white)
    np.testing.assert_allclose(louder[:, 0] - energy, 3 * np.log(4), atol=1e-3)
    np.testing.assert_allclose(louder[:, 1:], summary_of(white)[:, 1:], atol=0.02)
    assert np.ptp(unevenness) < 1


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_summary_sees_what_it_is_meant_to(rng, number):
    """Kurtosis, skewness, unevenness, and unevenness that follows the brightness."""
    white = rng.standard_normal((4, 64, 64))
    smooth = ndimage.gaussian_filter(rng.standard_normal((4, 64, 64)), (0, 8, 8), mode="wrap")
    smooth /= smooth.std()
    changed = {
        1: np.sign(white) * np.abs(white) ** 1.7,
        2: np.exp(white),
        3: white * np.exp(0.7 * smooth),
        4: white * np.exp(0.7 * smooth) + 2 * smooth,
    }[number]
    assert (summary_of(changed)[:, number] > summary_of(white)[:, number] + 1.5).all()


def test_separate_scores_are_proper_and_see_one_number(rng):
    """An error of one number among many shows as if it were alone."""

    def draw(shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
        numbers = rng.standard_normal((4000, 6)).astype(np.float32)
        numbers[:, 2] = shift + scale * numbers[:, 2]
        return numbers

    def score(**wrong: float) -> float:
        found = networks._separate_scores(draw(), draw(**wrong), draw(**wrong))
        assert found.shape == (4000,)
        return float(ops.mean(found))

    right = score()
    # E|x - s| - E|s - s'|/2 of standard normal numbers is 1 / sqrt(pi).
    np.testing.assert_allclose(right, 1 / np.sqrt(np.pi), atol=0.01)
    # One of six off by 1: E|N(1, 2)| - E|N(0, 2)| more.
    apart = stats.foldnorm.mean(np.sqrt(0.5), scale=np.sqrt(2)) - 2 / np.sqrt(np.pi)
    np.testing.assert_allclose(score(shift=1.0) - right, apart / 6, atol=0.015)
    assert score(scale=0.3) > right + 0.01


def test_fine_octaves_train_on_a_share_of_the_batch(patches):
    """The coarse ones on all of it; where nothing is trained, so do the fine ones."""
    network = make_network()
    network.coarse_share = 2
    given = inputs(patches)
    half = len(patches) // 2
    # The same coarse maps: other details in the finest octave of the second half.
    other = patches.copy()
    other[half:, ::2] += 0.5
    other[half:, 1::2] -= 0.5

    def likelihood(patches: np.ndarray, training: bool) -> float:
        ops_given = {**given, "patches": patches}
        network.seed_generator.state.assign([0, 7])
        return float(ops.mean(network(ops_given, training=training)["likelihood"]))

    assert likelihood(patches, True) == pytest.approx(likelihood(other, True), rel=1e-5)
    assert abs(likelihood(patches, False) - likelihood(other, False)) > 1


def test_a_rough_map_is_known_to_be_rough(lively, rng):
    """In both windows: the context's last two channels are the log of the finest band's scale."""
    white = rng.standard_normal((1, 40, 40, 1)).astype(np.float32)
    rough, rougher = (np.asarray(lively._context(f * white, 1))[..., -2:] for f in (1.0, 10.0))
    np.testing.assert_allclose(rougher - rough, np.log(10), atol=0.05)
    assert rough[..., 1].std() < 0.7 * rough[..., 0].std()


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2, 2.5])
def test_directions_are_those_of_the_gradient(lively, angle):
    """Of a plane: coherent, and at twice its angle, at the edges, too. None of flat or round."""
    y, x = (each - 14.0 for each in np.mgrid[:29, :29].astype(np.float32))
    expected = 2 * [np.cos(2 * angle), np.sin(2 * angle)]
    plane = (x * np.cos(angle) + y * np.sin(angle))[None, ..., None]
    for found, value in zip(lively._directions(plane, 0.1), expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-3)
    for found in lively._directions(np.ones_like(plane), 0.1):
        np.testing.assert_allclose(found, 0, atol=1e-6)
    for found in lively._directions((x**2 + y**2)[None, ..., None], 0.1):
        np.testing.assert_allclose(found[0, 14, 14], 0, atol=1e-3)


def test_gradient_of_a_plane_is_exact():
    y, x = np.mgrid[:5, :7].astype(np.float32)
    plane = (2.0 * x - 3.0 * y)[None]
    np.testing.assert_allclose(networks._gradient(plane, 1), -3.0 + 0 * plane, atol=1e-5)
    np.testing.assert_allclose(networks._gradient(plane, 2), 2.0 + 0 * plane, atol=1e-5)


@pytest.mark.parametrize("width", [3, 5, 17])
def test_box_is_the_mean_of_the_window_inside_the_map(rng, width):
    field = rng.standard_normal((2, 12, 20)).astype(np.float32)
    reach = width // 2
    expected = [
        [
            field[1, max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1].mean()
            for j in range(20)
        ]
        for i in range(12)
    ]
    np.testing.assert_allclose(networks._box(field, width)[1], expected, atol=1e-5)
    channels = np.stack([field, 2 * field], axis=-1)
    found = networks._box_each(channels, width)[1]
    np.testing.assert_allclose(found, np.multiply.outer(expected, [1, 2]), atol=1e-5)


@pytest.mark.parametrize("width", [3, 5, 17])
def test_derivatives_of_box_are_those_of_a_linear_map(rng, width):
    """Backward it is its transpose, ``(B x) . y = x . (B' y)``; forward it is itself."""
    import tensorflow as tf

    field, other = map(tf.constant, rng.standard_normal((2, 3, 12, 20)).astype(np.float32))
    with tf.autodiff.ForwardAccumulator(field, other) as tangent, tf.GradientTape() as tape:
        tape.watch(field)
        mean = networks._box(field, width)
        product = tf.reduce_sum(mean * other)
    np.testing.assert_allclose(tangent.jvp(mean), networks._box(other, width), atol=1e-6)
    sent_back = tf.reduce_sum(tape.gradient(product, field) * field)
    np.testing.assert_allclose(sent_back, product, rtol=1e-4, atol=1e-4)


def test_critic_judges_the_patch_as_a_whole(rng):
    """With the places' verdicts left out there is one verdict a patch, the same everywhere."""
    critic = networks._Critic(1)
    critic.build((None, None, None, 4))
    critic.patch_head.assign(rng.standard_normal(critic.patch_head.shape))
    verdicts = np.asarray(critic(rng.standard_normal((3, 32, 32, 4)).astype(np.float32), octave=0))
    assert verdicts.shape == (3, 4, 4)
    np.testing.assert_allclose(verdicts, verdicts[:, :1, :1] * np.ones((4, 4)))
    assert np.std(verdicts[:, 0, 0]) > 1e-3


def test_critic_and_decoder_learn_from_opposite_sides(octave, rng):
    """The decoder's part of the loss leaves the critic alone, and the other way round."""
    import tensorflow as tf

    for head in (octave.critic.head, octave.critic.patch_head):
        head.assign(rng.standard_normal(head.shape))
    real, noise = rng.standard_normal((2, 3, 16, 16, 1)).astype(np.float32)
    shift = tf.Variable(0.1)
    environment = np.zeros(3, np.float32)

    def slopes(weight: float) -> tuple[float, list[np.ndarray]]:
        octave.critic_weight = weight
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(octave._rivalry(real, noise + shift, environment, 0))
        variables = octave.critic.trainable_variables
        slope, *rest = tape.gradient(loss, [shift, *variables], unconnected_gradients="zero")
        return float(slope), [np.asarray(each) for each in rest]

    (none, alone), (some, both) = slopes(0.0), slopes(0.7)
    assert none == 0.0
    assert abs(some) > 1e-4
    for one, other in zip(alone, both, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert any(np.abs(each).max() > 1e-3 for each in both)


def test_environment_changes_what_is_drawn(octave, rng):
    latents = normals(rng, octave, 16)
    diffuse = np.asarray(octave.decode(latents))
    mixed = np.asarray(octave.decode(latents, environment=np.array([0, 1, 0], np.float32)))
    np.testing.assert_allclose(mixed[[0, 2]], diffuse[[0, 2]], atol=1e-6)
    assert np.std(mixed[1] - diffuse[1]) > 0.01


@pytest.mark.parametrize("grid", [6, 9, 24])
def test_wide_latents_have_unit_variance(octave, rng, grid):
    """At the edges, too; and neighbours share them."""
    z = rng.standard_normal((4000, grid, grid, 2)).astype(np.float32)
    averaged = np.asarray(octave._wide_latents(z))
    for window, each in zip((9, 17), np.moveaxis(averaged, -1, 0), strict=True):
        np.testing.assert_allclose(each.std(axis=0), 1, atol=0.06)
        reach = min(window, grid)
        expected = 1 - 1 / reach if grid > window else None
        if expected:
            middle = grid // 2
            shared = np.corrcoef(each[:, middle, middle], each[:, middle, middle + 1])[0, 1]
            assert shared == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("level", [0, 1, 2, 5])
def test_refine_is_local(lively, rng, level):
    """A window with a margin gives what the whole map gives there, wherever it lies."""
    reach = lively.REACH
    coarse = rng.standard_normal((2, 50, 45)).astype(np.float32)
    latents = rng.standard_normal((2, 50, 45, 6)).astype(np.float32)
    environment = np.array([0.0, 1.0], np.float32)
    whole = np.asarray(lively.refine(coarse, latents, environment, level))
    assert whole.shape == (2, 100, 90)
    np.testing.assert_allclose(block_means(whole, 2), coarse, atol=1e-5)
    part = np.asarray(lively.refine(coarse, latents, environment, level, 2))
    np.testing.assert_allclose(part, whole[:, 4:-4, 4:-4], atol=1e-5)
    for margin, row, column, rows, columns in ((reach, 9, 4, 35, 41), (reach + 3, 3, 5, 40, 36)):
        window = np.s_[:, row : row + rows, column : column + columns]
        part = np.asarray(
            lively.refine(coarse[window], latents[window], environment, level, margin)
        )
        assert part.shape == (2, 2 * (rows - 2 * margin), 2 * (columns - 2 * margin))
        inside = whole[
            :,
            2 * (row + margin) : 2 * (row + rows - margin),
            2 * (column + margin) : 2 * (column + columns - margin),
        ]
        np.testing.assert_allclose(part, inside, atol=1e-5)


@pytest.mark.parametrize("level", [0, 1, 2, 5])
def test_one_environment_for_all_is_that_of_each(lively, rng, level):
    coarse = rng.standard_normal((2, 20, 24)).astype(np.float32)
    latents = rng.standard_normal((2, 20, 24, 6)).astype(np.float32)
    found = {}
    for environment in (0.0, 0.7):
        each = np.full(2, environment, np.float32)
        found[environment] = np.asarray(lively.refine(coarse, latents, environment, level))
        expected = np.asarray(lively.refine(coarse, latents, each, level))
        tolerance = 2e-6 * np.abs(expected).max()
        np.testing.assert_allclose(found[environment], expected, rtol=0, atol=tolerance)
    assert np.abs(found[0.7] - found[0.0]).max() > 0.01


def test_refine_reaches_no_further_than_it_says(lively, rng):
    reach, middle = lively.REACH, 20
    coarse = rng.standard_normal((1, 41, 41)).astype(np.float32)
    latents = rng.standard_normal((1, 41, 41, 6)).astype(np.float32)
    environment = np.ones(1, np.float32)
    for level in (0, 2):
        before = np.asarray(lively.refine(coarse, latents, environment, level))
        moved = [coarse + 0, latents + 0]
        for each in moved:
            each[:, middle, middle] += 3.0
        after = np.asarray(lively.refine(*moved, environment, level))
        rows = np.flatnonzero(np.abs(after - before).max(axis=(0, 2)) > 1e-5) // 2
        assert middle - reach <= rows.min()
        assert rows.max() <= middle + reach
        assert rows.max() > middle + reach // 2


@pytest.mark.parametrize(("level", "octave"), [(0, 3), (2, 1), (3, 1), (7, 1)])
def test_refine_runs_the_step_of_its_octave(lively, rng, level, octave):
    """The step of each level is that of its octave, and the finest is left to the beam."""
    coarse = rng.standard_normal((1, 12, 12)).astype(np.float32)
    latents = rng.standard_normal((1, 12, 12, 6)).astype(np.float32)
    found = np.asarray(lively.refine(coarse, latents, np.zeros(1, np.float32), level))
    context = lively._context(coarse[..., None], octave, lively.LARGEST)
    details = lively.detail_scale[octave] * lively._details(context, latents, [0.0], octave)
    np.testing.assert_allclose(found, haar_synthesis(coarse[..., None], details)[..., 0], atol=1e-6)


def test_peaks_do_not_grow_without_bound(lively):
    """On planes, what a step sees of a map is bounded; what training has seen is hardly changed."""
    for height, bound in ((1e4, lively.LARGEST), (0.1, 0.1)):
        coarse = np.zeros((1, 16, 16, 1), np.float32)
        coarse[0, 8, 8] = height * float(lively.context_scale[1][0])
        free = np.asarray(lively._context(coarse, 1))[..., :3]
        held = np.asarray(lively._context(coarse, 1, lively.LARGEST))[..., :3]
        assert np.abs(held).max() <= bound
        assert np.abs(free).max() > 0.8 * bound
        if height < 1:
            np.testing.assert_allclose(held, free, atol=1e-4)
        else:
            assert np.abs(free).max() > 100 * bound


def test_too_large_a_coarsest_map_is_refused():
    with pytest.raises(ValueError, match="512 pixels at most"):
        build_network("octave").latent_shapes(528)


def test_patches_too_small_for_the_variogram_are_refused(rng):
    with pytest.raises(ValueError, match="needs 48 pixels"):
        build_network("octave").adapt(rng.standard_normal((2, 32, 32)).astype("float32"))
