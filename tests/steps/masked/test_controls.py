"""Controls: rankings by brute force and by SciPy, masks of exactly the selection's area."""

from itertools import pairwise, product
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from igmask import arrays, plain
from igmask.asked.recipes import records_of
from igmask.errors import InputError
from igmask.kernels import to_pixels
from igmask.steps.masked.controls import CONTROLS, Batch, Dataset, has_ranking

SIDE, SIZE, N = 3, 14, 12  # squares of the right and bottom border are 3×2, 2×3 and 2×2
GRID = plain.grid(SIZE, SIZE, SIDE)
CLASSES = np.array([0, 1, 0, 2, 1, 0, 0, 1, 4, 0, 1, 0])  # of 2 and 4 there is one image
IMAGES = np.random.default_rng(1).integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
SCORES = np.random.default_rng(2).random((N, *GRID)).round(1)  # many are equal
ROWS = np.arange(N)


class Reversed(NamedTuple):
    """As if of the randomised network."""

    parts: arrays.Shards

    def read(self, rows):
        return self.parts.read(rows)[:, :, ::-1]


@pytest.fixture
def dataset(tmp_path):
    """What makes a `Dataset` of so many shards and such a seed."""

    def made(shards=1, seed=0, labels=CLASSES, scores=SCORES):
        paths = []
        for i, rows in enumerate(np.array_split(ROWS, shards)):
            paths.append(tmp_path / f"{shards}-{i}-{len(set(labels))}-{scores.sum()}.npy")
            parts = np.stack([scores[rows], 0 * scores[rows]], axis=1).astype(np.float32)
            with arrays.writing(paths[-1], np.float32, parts.shape[1:]) as writer:
                writer.append(parts)
            records = pd.DataFrame({"name": [f"{row}.png" for row in rows], "label": labels[rows]})
            records = records.assign(predicted=CLASSES[rows], position=3 * rows)
            records["crc32"] = writer.checksums
            arrays.write_records(records_of(paths[-1]), records, {"side": SIDE, "skipped": []})
        parts = arrays.Shards(paths)
        return Dataset(parts, "positive", seed, randomised=Reversed(parts))

    return made


def scores(name, dataset, rows=ROWS, draw=0):
    return CONTROLS[name].scores(dataset, Batch(IMAGES[rows], rows, draw))


def places(scores):
    """The place of each square in the ranking, one after the other."""
    flat = scores.reshape(-1).tolist()
    order = sorted(range(len(flat)), key=lambda k: (-flat[k], k))
    found = np.empty(len(flat), dtype=int)
    found[order] = range(len(flat))
    return found.reshape(scores.shape)


@pytest.mark.parametrize("name", CONTROLS)
def test_masks_have_exactly_the_selections_area(dataset, name):
    of_control = scores(name, dataset())
    sizes = plain.pixels_of_squares(GRID, SIZE, SIZE, SIDE)
    live = has_ranking(of_control)
    for mask in plain.select(SCORES, [10, 35, 80, 100]):
        found = plain.as_large(of_control, mask, sizes)
        asked, pixels = (
            to_pixels(torch.from_numpy(m), SIZE, SIZE).sum(dim=(1, 2)).numpy()
            for m in (mask, found)
        )
        np.testing.assert_array_equal(pixels[live], asked[live])
        np.testing.assert_array_equal(found.sum((1, 2))[live], mask.sum((1, 2))[live])
    assert live.sum() == (N - 2 if name == "same-class" else N)


def test_a_mask_as_large_has_the_first_squares_of_each_size():
    rng = np.random.default_rng(0)
    sizes = plain.pixels_of_squares(GRID, SIZE, SIZE, SIDE)
    other, mask = rng.integers(0, 4, (30, *GRID)).astype(float), rng.random((30, *GRID)) < 0.4
    found = plain.as_large(other, mask, sizes)
    for scored, selected, chosen in zip(other, mask, found, strict=True):
        for size in set(sizes):
            [squares] = np.nonzero(sizes == size)
            order = sorted(squares, key=lambda k: (-scored.flat[k], k))
            first = order[: int(selected.flat[squares].sum())]
            assert set(np.flatnonzero(chosen)) & set(squares) == set(first)


def test_masks_of_more_squares_contain_those_of_fewer(dataset):
    sizes = plain.pixels_of_squares(GRID, SIZE, SIZE, SIDE)
    of_control = scores("random", dataset())
    grown = [plain.as_large(of_control, m, sizes) for m in plain.select(SCORES, range(5, 101, 5))]
    assert all((small <= large).all() for small, large in pairwise(grown))


@pytest.mark.parametrize("name", ["random", "shifted", "other-class", "same-class"])
def test_draws_depend_on_seed_place_in_the_dataset_and_number_alone(dataset, name):
    whole, few = dataset(), np.array([7, 2, 2, 9])
    expected = scores(name, whole)
    np.testing.assert_array_equal(scores(name, whole, few), expected[few])
    np.testing.assert_array_equal(scores(name, dataset(shards=5)), expected)
    others = scores(name, whole, draw=1), scores(name, dataset(seed=1))
    assert all((other != expected).any() for other in others)


@pytest.mark.parametrize("name", ["edges", "position"])
def test_what_is_not_drawn_does_not_depend_on_seed_draw_and_shards(dataset, name):
    expected = scores(name, dataset())
    for found in (scores(name, dataset(seed=1), draw=3), scores(name, dataset(shards=4))):
        np.testing.assert_array_equal(found, expected)


def test_random_squares_are_spread_evenly(dataset):
    whole, sizes = dataset(), plain.pixels_of_squares(GRID, SIZE, SIZE, SIDE)
    mask = np.zeros((N, *GRID), dtype=bool)
    mask[:, 1, 1:3] = True  # two of the 16 whole squares
    drawn = [plain.as_large(scores("random", whole, draw=d), mask, sizes) for d in range(300)]
    shares = np.mean(drawn, axis=(0, 1))
    assert np.abs(shares[:4, :4] - 2 / 16).max() < 5 * (2 / 16 / 300 / N) ** 0.5
    assert shares[4].sum() == shares[:, 4].sum() == 0


def test_shifted_is_the_images_own_ranking_on_the_torus_and_never_in_its_place(dataset):
    whole, seen = dataset(), set()
    for draw in range(40):
        for row, found in enumerate(scores("shifted", whole, draw=draw)):
            own = -places(SCORES[row])
            by = [b for b in product(*map(range, GRID)) if (np.roll(own, b, (0, 1)) == found).all()]
            assert len(by) == 1
            seen |= {by[0]}
    assert seen == {*product(*map(range, GRID))} - {(0, 0)}


def test_a_lone_square_cannot_be_shifted():
    parts = SimpleNamespace(row_shape=(2, 1, 1), read=lambda rows: np.ones((len(rows), 2, 1, 1)))
    parts.records = pd.DataFrame({"position": [0]})
    found = scores("shifted", Dataset(parts, "positive", 0), np.array([0]))
    assert np.isnan(found).all()
    assert not has_ranking(found).any()


@pytest.mark.parametrize("labelled", [True, False])
def test_another_image_is_of_the_class_that_is_asked_for(dataset, labelled):
    whole = dataset(labels=CLASSES if labelled else np.full(N, -1))
    expected = np.float32(SCORES).astype(float)
    for name in ("same-class", "other-class"):
        partners = {row: set() for row in range(N)}
        for draw in range(60):
            for row, found in enumerate(scores(name, whole, draw=draw)):
                if not np.isnan(found).any():
                    [partner] = np.flatnonzero((expected == found).all(axis=(1, 2)))
                    partners[row].add(int(partner))
        for row, found in partners.items():
            same = {other for other in range(N) if CLASSES[other] == CLASSES[row]}
            assert found == (same - {row} if name == "same-class" else {*range(N)} - same)


@pytest.mark.parametrize("shards", [1, 3])
def test_images_without_a_ranking_have_none_to_give_and_none_that_is_shifted(dataset, shards):
    lacking = np.array([0, 3, 4])  # 3 is the only one of its class
    has = ~np.isin(ROWS, lacking)
    whole = dataset(shards, scores=np.where(has[:, None, None], SCORES, 0.25))
    np.testing.assert_array_equal(whole.ranked, has)
    np.testing.assert_array_equal(has_ranking(scores("shifted", whole)), has)
    every = np.stack([places(one) for one in SCORES])
    for row, found in enumerate(scores("position", whole)):
        expected = every[[other for other in ROWS[has] if other != row]].mean(axis=0)
        np.testing.assert_allclose(-found, expected)
    for name in ("same-class", "other-class"):
        partners = {row: set() for row in range(N)}
        for draw in range(60):
            for row, found in enumerate(scores(name, whole, draw=draw)):
                if not np.isnan(found).any():
                    [partner] = np.flatnonzero((np.float32(SCORES) == found).all(axis=(1, 2)))
                    partners[row].add(int(partner))
        for row, found in partners.items():
            same = {other for other in range(N) if CLASSES[other] == CLASSES[row]}
            expected = same - {row} if name == "same-class" else {*range(N)} - same
            assert found == expected - {*lacking}


def test_where_no_image_has_a_ranking_no_control_of_rankings_has_one(dataset):
    none = dataset(scores=np.zeros_like(SCORES))
    for name in ("shifted", "same-class", "other-class", "position"):
        assert not has_ranking(scores(name, none)).any()


def test_edges_are_sobels(dataset):
    for image, found in zip(IMAGES, scores("edges", dataset()), strict=True):
        by_axis = [ndimage.sobel(image.mean(axis=2), axis, mode="nearest") for axis in (0, 1)]
        energy = sum(one**2 for one in by_axis)
        for p, q in product(*map(range, GRID)):
            square = energy[p * SIDE : (p + 1) * SIDE, q * SIDE : (q + 1) * SIDE]
            assert found[p, q] == pytest.approx(square.mean())


def test_position_is_the_mean_place_in_the_other_images(dataset):
    every = np.stack([places(one) for one in SCORES])
    for row, found in enumerate(scores("position", dataset())):
        np.testing.assert_allclose(-found, np.delete(every, row, axis=0).mean(axis=0))


def test_randomised_needs_the_scores_of_that_network(dataset):
    found = scores("randomised", dataset())
    np.testing.assert_array_equal(found, np.float32(SCORES)[:, ::-1])
    alone = dataset()
    with pytest.raises(InputError, match="randomised needs the scores of the randomised network"):
        scores("randomised", Dataset(alone.parts, "positive", 0))


def test_an_image_all_of_one_colour_has_no_edges(dataset):
    batch = Batch(np.full((1, SIZE, SIZE, 3), 7, dtype=np.uint8), np.array([0]))
    assert not has_ranking(CONTROLS["edges"].scores(dataset(), batch)).any()
