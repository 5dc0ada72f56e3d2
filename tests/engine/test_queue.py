"""The queue of (image, step) pairs, by hand."""

import pytest
import torch

from igmask.engine.queue import NotFinite, batches

RULE = [0.25, 0.5, 1.0], [0.2, 0.3, 0.5]


def positions_of(pairs):
    return (torch.tensor(pairs.alphas),)


def queued(n_images, compute=positions_of, **options):
    return [pairs for pairs, _ in batches([RULE] * n_images, compute=compute, **options)]


def test_pairs_of_an_image_are_next_to_each_other_and_the_last_batch_is_what_is_left():
    first, last = queued(2, size=4)
    assert (first.owners, first.steps) == ([0, 0, 0, 1], [0, 1, 2, 0])
    assert (last.owners, last.steps) == ([1, 1], [1, 2])
    assert (last.alphas, last.weights) == ([0.5, 1.0], [0.3, 0.5])
    assert [(batch.start, batch.n_done) for batch in (first, last)] == [(0, 1), (4, 2)]


def test_the_last_batch_is_filled_with_pairs_that_weigh_nothing():
    *_, last = queued(2, size=4, padded=True)
    assert (last.owners, last.steps) == ([1, 1, 1, 1], [1, 2, 2, 2])
    assert last.weights == [0.3, 0.5, 0.0, 0.0]


def test_a_batch_has_the_least_number_of_rows():
    found = queued(1, size=1, least=2)
    assert [batch.owners for batch in found] == [[0, 0]] * 3
    assert [batch.weights for batch in found] == [[0.2, 0.0], [0.3, 0.0], [0.5, 0.0]]
    *_, last = queued(1, size=2, least=2)
    assert (last.steps, last.weights) == ([2, 2], [0.5, 0.0])


def test_each_image_has_steps_of_its_own():
    rules = [RULE, ([0.5], [1.0]), ([0.1, 0.9], [0.5, 0.5])]
    first, last = (pairs for pairs, _ in batches(rules, size=4, compute=positions_of))
    assert (first.owners, first.steps, first.n_done) == ([0, 0, 0, 1], [0, 1, 2, 0], 2)
    assert (first.alphas, first.weights) == ([0.25, 0.5, 1.0, 0.5], [0.2, 0.3, 0.5, 1.0])
    assert (last.owners, last.steps, last.n_done) == ([2, 2], [0, 1], 3)


@pytest.mark.parametrize("padded", [False, True])
def test_batches_are_halved_until_they_fit_and_no_pair_is_lost(padded):
    tried = []

    def gradients(pairs):
        tried.append(len(pairs.owners))
        if len(pairs.owners) > 2:
            raise torch.OutOfMemoryError("full")
        return (torch.tensor(pairs.alphas),)

    found = queued(2, gradients, size=9, padded=padded)
    assert tried == ([9, 4] if padded else [6, 4]) + [2, 2, 2]
    pairs = [pair for batch in found for pair in zip(batch.owners, batch.steps, strict=True)]
    assert pairs == [(image, step) for image in range(2) for step in range(3)]


def test_the_first_pair_that_is_not_finite_is_named():
    first, _ = queued(2, size=4)
    first.check((torch.zeros(4, 5), torch.zeros(4, 2)))
    slopes = torch.zeros(4, 5)
    slopes[2:, 3] = torch.nan
    with pytest.raises(NotFinite, match=r"image 0: .*at step 3, α = 1;"):
        first.check((torch.zeros(4, 2), slopes))


def test_no_images_have_no_batches():
    assert queued(0, size=4) == []
