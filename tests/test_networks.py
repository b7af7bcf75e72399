"""The networks: what is a bound must be one, and what is kept must be kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from keras import ops
from scipy import integrate, stats
from synthetic import NETWORK, SIZE, field, make_network

from pysm_vae.vae import networks
from pysm_vae.vae.networks import build_network, haar_analysis, haar_synthesis


@pytest.fixture(scope="module")
def octave() -> networks.Octave:
    return make_network()


@pytest.fixture(scope="module")
def thorne() -> networks.Thorne2021:
    return build_network("thorne2021", size=32, latents=8)


@pytest.fixture
def patches(rng) -> np.ndarray:
    drawn = np.stack([field(rng, SIZE) for _ in range(6)])
    drawn -= drawn.mean(axis=(1, 2), keepdims=True)
    return (drawn / drawn.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def normals(rng, network, size: int, n: int = 3, depth: int | None = None) -> list[np.ndarray]:
    shapes = network.latent_shapes(size, depth)
    return [rng.standard_normal((n, *shape)).astype(np.float32) for shape in shapes]


def block_means(fields: np.ndarray, block: int) -> np.ndarray:
    n, size, _ = fields.shape
    grid = size // block
    return fields.reshape(n, grid, block, grid, block).mean(axis=(2, 4))


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
    terms = {key: np.asarray(value) for key, value in network(patches).items()}
    assert {value.shape for value in terms.values()} == {(len(patches),)}
    # A patch's KL term is its own, and it is the sum over its latents, whatever the batch.
    alone = np.asarray(network(patches[:1])["kl"])
    np.testing.assert_allclose(terms["kl"][:1], alone, rtol=1e-4)
    if name == "thorne":
        ((mean, log_scale),) = network.encode(patches)
        np.testing.assert_allclose(terms["kl"], networks._kl(mean, log_scale), rtol=1e-5)
        posterior = np.asarray(mean)
        assert posterior.shape == (len(patches), 8)
    pixels = patches[0].size
    minus_elbo = (terms["kl"] - terms["likelihood"] + terms["score"]).mean() / pixels
    np.testing.assert_allclose(network.compute_loss(x=patches, y_pred=terms), minus_elbo, rtol=1e-5)
    # The same patches twice over: the same loss.
    twice = {key: np.concatenate([value, value]) for key, value in terms.items()}
    loss = network.compute_loss(x=np.concatenate([patches, patches]), y_pred=twice)
    np.testing.assert_allclose(loss, minus_elbo, rtol=1e-5)


def test_elbo_bounds_the_evidence(rng):
    """A linear Gaussian model in closed form: its ELBO is below the evidence, by the KL gap."""
    network = build_network("octave", **NETWORK, score_weight=0.0, residual=0.5)
    for variable in network.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    patches = rng.standard_normal((64, SIZE, SIZE)).astype(np.float32)
    terms = {key: np.asarray(value) for key, value in network(patches).items()}
    # Nothing is decoded: the details' density is N(0, 0.5) whatever the latents.
    coarse, evidence = patches[..., None], 0.0
    for _ in range(NETWORK["octaves"]):
        coarse, details = haar_analysis(coarse)
        evidence = evidence + stats.norm(0, 0.5).logpdf(np.asarray(details)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(terms["likelihood"], evidence, rtol=1e-5)
    # Posterior N(0, exp(-1)) at each of 2 x (64 + 16) latents.
    gap = 160 * (0.5 * (np.exp(-2) - 1) + 1)
    np.testing.assert_allclose(terms["kl"], gap, rtol=1e-5)


def test_training_metrics_include_the_loss(patches):
    """Early stopping and the best checkpoint follow val_loss, which must be in the logs."""
    network = build_network("octave", **NETWORK)
    network.compile(optimizer="adam", jit_compile=False)
    history = network.fit(patches, validation_data=(patches, None), verbose=0).history
    assert {"loss", "val_loss", "elbo", "val_elbo", "kl", "likelihood", "score"} <= set(history)
    for prefix in ("", "val_"):
        elbo = history[f"{prefix}likelihood"][0] - history[f"{prefix}kl"][0]
        np.testing.assert_allclose(history[f"{prefix}elbo"][0], elbo, rtol=1e-4)
        expected = history[f"{prefix}score"][0] - elbo
        np.testing.assert_allclose(history[f"{prefix}loss"][0], expected, rtol=1e-4)


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
    assert octave.latent_shapes(24, depth=3) == [(9,), (3, 3, 2), (6, 6, 2), (12, 12, 2)]
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


def test_octave_encodes_the_coarsest_map_exactly(octave, patches):
    posterior = [mean for mean, _ in octave.encode(patches)]
    decoded = np.asarray(octave.decode(posterior))
    np.testing.assert_allclose(block_means(decoded, 4), block_means(patches, 4), atol=1e-3)


@pytest.mark.parametrize("beam", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_octave_keeps_the_coarse_map(octave, rng, beam, depth):
    coarse = rng.standard_normal((3, 4, 4)).astype(np.float32)
    latents = normals(rng, octave, 4 << depth, depth=depth)[1:]
    drawn = np.asarray(octave.decode(latents, coarse=coarse, beam=beam))
    assert drawn.shape == (3, 4 << depth, 4 << depth)
    np.testing.assert_allclose(block_means(drawn, 1 << depth), coarse, atol=1e-5)
    # It is not just the coarse map again, and other latents give another patch.
    assert np.std(drawn - np.kron(coarse, np.ones((1 << depth, 1 << depth)))) > 0.01
    other = octave.decode([-z for z in latents], coarse=coarse, beam=beam)
    assert np.std(drawn - np.asarray(other)) > 0.01


def test_octaves_without_beam_do_not_depend_on_those_that_follow(octave, rng):
    latents = normals(rng, octave, 64, depth=4)
    fine = np.asarray(octave.decode(latents, beam=False))
    for drop in (1, 2, 3):
        coarser = np.asarray(octave.decode(latents[:-drop], beam=False))
        np.testing.assert_allclose(block_means(fine, 1 << drop), coarser, atol=1e-4)
    # With the beam the last octave is another one than when more follow.
    beamed = np.asarray(octave.decode(latents, beam=True))
    shorter = np.asarray(octave.decode(latents[:-1], beam=True))
    assert np.abs(block_means(beamed, 2) - shorter).max() > 0.01


def test_one_octave_decodes_without_beam(rng):
    network = build_network("octave", octaves=1, channels=4, encoder_channels=4, latents=2)
    assert network.decode(normals(rng, network, 8, depth=2), beam=False).shape == (3, 8, 8)


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


def test_adapt_measures_scales_and_variogram(rng):
    network = build_network("octave", **NETWORK)
    # White noise: details of block means halve from octave to octave, values have no correlation.
    network.adapt(rng.standard_normal((400, 16, 16)).astype(np.float32))
    np.testing.assert_allclose(network.detail_scale.numpy(), [0.5, 0.25], rtol=0.03)
    # Block means of 4 x 4 pixels have variance 1/16 at any lag: g = 1/16, h at its lower limit.
    np.testing.assert_allclose(network.variogram.numpy(), [1 / 16, 0.05], rtol=0.05)


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
    found = networks._energy_distance(truth, scale * one, scale * other, 1)
    # E|N(0, v)| = sqrt(2 v / pi).
    expected = np.sqrt(2 / np.pi) * (np.sqrt(1 + scale**2) - 0.5 * np.sqrt(2) * scale)
    np.testing.assert_allclose(float(ops.mean(found)), expected, rtol=0.01)


def test_too_large_a_coarsest_map_is_refused():
    with pytest.raises(ValueError, match="512 pixels at most"):
        build_network("octave").latent_shapes(528)


def test_patches_too_small_for_the_variogram_are_refused(rng):
    with pytest.raises(ValueError, match="needs 48 pixels"):
        build_network("octave").adapt(rng.standard_normal((2, 32, 32)).astype("float32"))
