"""Drawing on a chart: blocks fit together, and places decide the latents."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic import make_generator

from pysm_vae.sky import canvas as module
from pysm_vae.sky import cover
from pysm_vae.sky.canvas import Between, Canvas, mosaic, seeded_latents
from pysm_vae.sky.cover import SQUARES, Cover, whole_chart
from pysm_vae.sky.tiling import CELLS
from pysm_vae.vae.generator import THORNE_DEPTH, Generator, draw_latents

# Smaller blocks and rectangles than skies are made of, so that small grids have several.
BLOCK = 2 * CELLS
LARGEST = (70, 110)


@pytest.fixture(scope="module", autouse=True)
def _small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WHOLE", BLOCK)
        patch.setattr(module, "BLOCK", BLOCK)
        patch.setattr(cover, "LARGEST", LARGEST)
        cover._whole.cache_clear()
        yield
    cover._whole.cache_clear()


class Noise:
    """Stands in for a generator whose details are its latents, so that nothing hides them."""

    reach = 3
    network = SimpleNamespace(latents=3)
    batches = staticmethod(Generator.batches)

    def coarse_plane(self, white):
        return white.copy()

    def refine(self, coarse, latents, level, margin):
        a, b, c = np.moveaxis(latents, -1, 0)
        rows = [
            np.stack(pair, axis=-1) for pair in ((a + b + c, a - b - c), (b - a - c, c - a - b))
        ]
        fine = np.stack(rows, axis=-2) + coarse[..., None, None]
        n, height, width = coarse.shape
        fine = fine.swapaxes(2, 3).reshape(n, 2 * height, 2 * width)
        return fine[:, 2 * margin : -2 * margin, 2 * margin : -2 * margin]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Generator:
    return make_generator(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def drawn(tiny) -> list[np.ndarray]:
    """Four octaves of all of a chart."""
    return list(Canvas(tiny, 3, 7).draw(whole_chart(4, tiny.reach)))


def block_means(fields: np.ndarray) -> np.ndarray:
    n, size, _ = fields.shape
    return fields.reshape(n, size // 2, 2, size // 2, 2).mean(axis=(2, 4))


def cells(*places: tuple[int, int]) -> np.ndarray:
    """Squares of some cells."""
    wanted = np.zeros((CELLS, CELLS), bool)
    for place in places:
        wanted[place] = True
    return wanted.repeat(SQUARES, axis=0).repeat(SQUARES, axis=1)


def test_octaves_double_and_keep_their_means(drawn, tiny):
    assert [field.shape for field in drawn] == [(3, CELLS << n, CELLS << n) for n in (1, 2, 3, 4)]
    for coarse, fine in itertools.pairwise(drawn):
        assert fine.dtype == np.float32
        np.testing.assert_allclose(block_means(fine), coarse, atol=1e-5)
        # Something was added.
        assert np.std(fine - coarse.repeat(2, axis=1).repeat(2, axis=2)) > 0.01
    white = draw_latents([(CELLS, CELLS)], [(3, number, 0, 0, 0, 7) for number in range(3)])[0]
    np.testing.assert_allclose(block_means(drawn[0]), tiny.coarse_plane(white), atol=1e-5)


@pytest.mark.parametrize(
    "wanted",
    [
        cells((3, 40)),
        # On both sides of the edges of blocks, and in two far corners.
        cells((22, 22), (11, 33), (0, 0), (44, 44)),
    ],
)
def test_blocks_are_the_same_whatever_else_is_drawn(drawn, tiny, wanted):
    """Bit for bit, with the last octaves drawn only where they are wanted."""
    cover = Cover(np.ones_like(wanted), 4, tiny.reach)
    for whole in (1, 2, 3):
        found = list(Canvas(tiny, 3, 7).draw(cover.part(wanted, whole), whole))
        assert len(found) == 4
        for octave in range(whole):
            np.testing.assert_array_equal(found[octave], drawn[octave])
        where = wanted.repeat(4, axis=0).repeat(4, axis=1)
        np.testing.assert_array_equal(found[-1][:, where], drawn[-1][:, where])
        # What was left out is zero, and it was not all drawn.
        left_out = found[-1] == 0
        assert left_out.mean() > 0.2
        np.testing.assert_array_equal(found[-1][~left_out], drawn[-1][~left_out])


def test_what_is_not_needed_is_as_the_coarser_octave_has_it(drawn, tiny):
    needed = cells((20, 22), (21, 30))
    for whole in (None, 2):
        found = list(Canvas(tiny, 3, 7).draw(Cover(needed, 4, tiny.reach).octaves, whole))
        where = needed.repeat(4, axis=0).repeat(4, axis=1)
        np.testing.assert_allclose(found[-1][:, where], drawn[-1][:, where], atol=2e-5)
        beyond = found[-1][:, :100]
        expected = found[-2][:, :50].repeat(2, axis=1).repeat(2, axis=2)
        np.testing.assert_array_equal(beyond, expected if whole is None else 0 * expected)
        assert np.std(found[-2][:, :50]) > 0.1 or whole == 2


def test_threads_do_not_matter(drawn, tiny, monkeypatch):
    for number in ("1", "5"):
        monkeypatch.setenv("OMP_NUM_THREADS", number)
        found = list(Canvas(tiny, 3, 7).draw(whole_chart(4, tiny.reach)))
        np.testing.assert_array_equal(found[-1], drawn[-1])


def test_blocks_fit_together(drawn, tiny):
    """Against the same octave refined in one piece: no seam, to rounding."""
    reach = tiny.reach
    for level in (2, 3):
        coarse = drawn[level - 1]
        number = coarse.shape[1] // BLOCK
        assert number == 2 ** (level - 1)
        latents = np.zeros((3, *coarse.shape[1:], tiny.network.latents), np.float32)
        for i in range(number):
            for j in range(number):
                keys = [(3, field, level + 1, i, j, 7) for field in range(3)]
                shape = (BLOCK, BLOCK, tiny.network.latents)
                rows = slice(i * BLOCK, (i + 1) * BLOCK)
                columns = slice(j * BLOCK, (j + 1) * BLOCK)
                latents[:, rows, columns] = draw_latents([shape], keys)[0]
        edge = [(0, 0), (reach, reach), (reach, reach)]
        # Beyond the chart: its mirror image, and the latents of its other side.
        coarse = np.pad(coarse, edge, mode="symmetric")
        latents = np.pad(latents, [*edge, (0, 0)], mode="wrap")
        expected = tiny.refine(coarse, latents, level, reach)
        np.testing.assert_allclose(drawn[level], expected, atol=2e-5)


def test_fields_charts_octaves_and_blocks_differ():
    """Latents are uncorrelated between any two keys, and the same for the same."""

    def details(key):
        coarse, *finer = Canvas(Noise(), *key).draw(whole_chart(4, Noise.reach))
        found = [coarse]
        for fine in finer:
            found.append(fine - coarse.repeat(2, axis=1).repeat(2, axis=2))
            coarse = fine
        return found

    first, again, chart, seed = (details(key) for key in ((3, 7), (3, 7), (4, 7), (3, 8)))
    for octave in range(4):
        np.testing.assert_array_equal(first[octave], again[octave])
        fields = [*first[octave], *chart[octave], *seed[octave]]
        size = len(fields[0]) // BLOCK
        side = len(fields[0]) // size
        pieces = np.reshape(fields, (9, size, side, size, side)).swapaxes(2, 3)
        alike = np.corrcoef(pieces.reshape(9 * size**2, side**2))
        np.fill_diagonal(alike, 0)
        # Six times the scatter: three in four of a block's values are independent.
        assert np.abs(alike).max() < 7 / side
    blocks = [field[0, :BLOCK, :BLOCK].ravel() for field in first]
    alike = np.corrcoef(blocks) - np.eye(4)
    assert np.abs(alike).max() < 7 / BLOCK


def test_offset_and_gains_are_of_t_alone(drawn, tiny, rng):
    offset = rng.standard_normal((CELLS, CELLS))
    share = rng.uniform(0, 1, (CELLS, CELLS))
    gains = [(each, rng.uniform(0, 2, (CELLS, CELLS // 2 + 1))) for each in (share, 1 - share)]
    nothing = [(share, 0 * gain) for _, gain in gains]
    white = draw_latents([(CELLS, CELLS)], [(3, number, 0, 0, 0, 7) for number in range(3)])[0]
    own = tiny.coarse_plane(white)
    octaves = whole_chart(1, tiny.reach)
    found = block_means(
        next(Canvas(tiny, 3, 7, offset=offset, gains=nothing).draw(whole_chart(1, tiny.reach)))
    )
    np.testing.assert_allclose(found[0], offset, atol=1e-5)
    np.testing.assert_allclose(found[1:], own[1:], atol=1e-5)
    found = block_means(
        next(Canvas(tiny, 3, 7, offset=offset, gains=gains).draw(whole_chart(1, tiny.reach)))
    )
    modes = np.fft.rfft2(own[0])
    expected = offset + sum(
        each * np.fft.irfft2(modes * gain, s=(CELLS, CELLS)) for each, gain in gains
    )
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    found = block_means(next(Canvas(tiny, 3, 7, offset=offset).draw(octaves)))
    np.testing.assert_allclose(found[0], own[0] + offset, atol=1e-5)


# Patches of a fixed size


class Patches:
    """Stands in for a generator of patches of one size, which are what was drawn for them."""

    size = 64

    def latent_shapes(self):
        return [(self.size, self.size)]

    def decode(self, latents):
        return latents[0]


def test_mosaic_keeps_unit_variance():
    field = mosaic(Patches(), 1, 5)
    size = CELLS << THORNE_DEPTH
    assert field.shape == (3, size, size)
    assert field.dtype == np.float32
    np.testing.assert_allclose(field.var(axis=(1, 2)), 1, atol=0.01)
    # At the edges too.
    for strip in (field[:, :8], field[:, -8:], field[:, :, :8], field[:, :, -8:]):
        assert strip.var() == pytest.approx(1, abs=0.05)
    assert np.abs(np.corrcoef(field.reshape(3, -1)) - np.eye(3)).max() < 0.01
    np.testing.assert_array_equal(mosaic(Patches(), 1, 5), field)
    assert abs(np.corrcoef(mosaic(Patches(), 2, 5)[0].ravel(), field[0].ravel())[0, 1]) < 0.01


def test_mosaics_windows_have_squares_that_sum_to_one(monkeypatch):
    """One patch in two along each axis, four times: patches that do not overlap, so that windows
    stand alone. No key is used twice."""
    total = 0.0
    for parity in np.ndindex(2, 2):
        keys = set()

        def pick(shapes, found, parity=parity, keys=keys):
            assert not keys & set(found)
            keys.update(found)
            on = [(key[2] % 2, key[3] % 2) == parity for key in found]
            return [np.array(on, np.float32)[:, None, None] * np.ones(shapes[0], np.float32)]

        monkeypatch.setattr(module, "draw_latents", pick)
        window = mosaic(Patches(), 1, 5)
        assert window.max() == pytest.approx(1, abs=1e-3)
        total = total + window**2
    np.testing.assert_allclose(total, 1, atol=1e-5)


class TestBetween:
    """The path from one sky's latents to another's."""

    @pytest.mark.parametrize("fraction", [0.1, 0.5, 0.8])
    def test_latents_stay_standard_normal(self, fraction):
        places = [(0, 0, 1, row, 0) for row in range(200)]
        first, second, found = (
            seeded_latents([(20, 20, 2)], places, seed)[0]
            for seed in (3, 4, Between(3, 4, fraction))
        )
        angle = np.pi * fraction / 2
        np.testing.assert_allclose(found, np.cos(angle) * first + np.sin(angle) * second, atol=1e-6)
        assert found.std() == pytest.approx(1, abs=0.01)
        assert found.mean() == pytest.approx(0, abs=0.01)

    def test_every_field_of_a_chart_is_on_the_path(self, tiny):
        octaves = whole_chart(2, tiny.reach)
        ends = [list(Canvas(tiny, 3, seed).draw(octaves)) for seed in (7, 8)]
        way = [list(Canvas(tiny, 3, Between(7, 8, t)).draw(octaves)) for t in (0.01, 0.5, 0.99)]
        for octave in range(2):
            apart = [
                [np.std(fields[octave] - end[octave], axis=(1, 2)) for end in ends]
                for fields in way
            ]
            free = np.std(ends[0][octave] - ends[1][octave], axis=(1, 2))
            assert (apart[0][0] < 0.1 * free).all()
            assert (apart[2][1] < 0.1 * free).all()
            for each in apart[1]:
                np.testing.assert_allclose(
                    each, np.sqrt(2 - np.sqrt(2)) / np.sqrt(2) * free, rtol=0.2
                )

    def test_patches_of_fixed_size(self):
        first, other, middle = (mosaic(Patches(), 1, seed) for seed in (5, 6, Between(5, 6, 0.5)))
        # They show their latents as they are.
        np.testing.assert_allclose(middle, (first + other) / np.sqrt(2), atol=1e-5)
