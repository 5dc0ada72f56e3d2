"""Selection against a plain sort in exact arithmetic, and the properties it promises."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selection import by_sort

from igmask import plain
from igmask.kernels import pack, select, select_bits

PERCENTS = (0.01, 1, 12.34, 30, 50, 70, 90, 99.99, 100)


def chosen(scores, p, by="mass"):
    return set(select(torch.as_tensor(scores)[None], p, by=by)[0].nonzero().flatten().tolist())


finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
quantized = st.integers(-6, 6).map(float)  # many ties


@settings(max_examples=300, deadline=None)
@given(
    row=st.lists(st.one_of(finite, quantized), min_size=1, max_size=40),
    p=st.sampled_from(PERCENTS),
    by=st.sampled_from(["mass", "count"]),
)
def test_equals_a_plain_sort_in_exact_arithmetic(row, p, by):
    row = np.float32(row).tolist()
    assert chosen(row, p, by) == by_sort(row, p, by)


@settings(max_examples=100, deadline=None)
@given(
    row=st.lists(st.one_of(finite, quantized), min_size=1, max_size=40),
    by=st.sampled_from(["mass", "count"]),
)
def test_selections_of_growing_p_contain_each_other(row, by):
    sets = [chosen(np.float32(row).tolist(), p, by) for p in PERCENTS]
    assert all(small <= large for small, large in pairwise(sets))


@pytest.mark.parametrize("n_squares", [1, 7, 121, 5625, 10_000, 40_000])
@pytest.mark.parametrize("by", ["mass", "count"])
def test_every_size_matches_the_sort(n_squares, by):
    row = np.random.default_rng(n_squares).normal(size=n_squares).astype(np.float32).tolist()
    for p in (30, 50, 90):
        assert chosen(row, p, by) == by_sort(row, p, by)


def test_mass_is_minimal_by_hand():
    scores = [4.0, 1.0, 3.0, 2.0]  # of 10
    assert chosen(scores, 30) == {0}
    assert chosen(scores, 40) == {0}
    assert chosen(scores, 40.01) == {0, 2}
    assert chosen(scores, 70) == {0, 2}
    assert chosen(scores, 90) == {0, 2, 3}
    assert chosen(scores, 100) == {0, 1, 2, 3}


def test_top_half_of_the_mass_is_not_half_of_the_squares():
    scores = [100.0] + [1.0] * 9
    assert chosen(scores, 50, "mass") == {0}
    assert len(chosen(scores, 50, "count")) == 5


def test_ties_go_to_the_lower_index():
    assert chosen([1.0, 2.0, 2.0, 2.0, 1.0], 25, "mass") == {1}
    assert chosen([1.0, 2.0, 2.0, 2.0, 1.0], 40, "count") == {1, 2}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_count_orders_scores_of_any_size(dtype):
    cases = {
        (1.0, -8.0, -5.0): [0, 2],
        (2.0**-14, -(2.0**15), -(2.0**14), -(2.0**13)): [0, 2, 3],
        (1.0, 2.0**-12, -(2.0**-12), 2.0**-14): [0, 1, 3],
        (-0.0, 1.0, 0.0, -1.0): [0, 1, 2],
        (-1.0, -(2.0**-24), 1.0): [1, 2],
    }
    for row, best in cases.items():
        scores, p = torch.tensor([row], dtype=dtype), 60 if len(row) == 3 else 75
        assert select(scores, p, by="count")[0].nonzero().flatten().tolist() == best
        if dtype != torch.bfloat16:  # NumPy has none
            [mask] = plain.select(scores.numpy(), [p], by="count")
            assert mask[0].nonzero()[0].tolist() == best


def test_count_tells_doubles_apart_that_floats_do_not():
    row = [1.0, 1.0 + 2.0**-52, -1e300, -1.1e300, 5e-324, -5e-324]
    for p, best in ((16, {1}), (50, {0, 1, 4}), (83, {0, 1, 2, 4, 5})):
        assert chosen(torch.tensor(row, dtype=torch.float64), p, "count") == best


def test_one_hot_selects_one_square_for_any_p():
    scores = [0.0] * 20
    scores[13] = 1e-30
    assert all(chosen(scores, p) == {13} for p in PERCENTS)


def test_all_equal_selects_a_prefix():
    assert chosen([0.1] * 10, 50) == {0, 1, 2, 3, 4}
    assert chosen([0.1] * 10, 51) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("by", ["mass", "count"])
@pytest.mark.parametrize("scores", [[-1.0, -2.0, -3.0], [0.0, 0.0], [0.0, -5.0]])
def test_nothing_positive_selects_nothing(scores, by):
    assert chosen(scores, 100, by) == set()


def test_mass_never_selects_negative_scores():
    assert chosen([5.0, -1.0, 3.0, -7.0], 100) == {0, 2}


@pytest.mark.parametrize("scale", [2.0**-140, 2.0**-60, 1.0, 2.0**100])
def test_powers_of_two_change_nothing(scale):
    row = torch.rand(1, 500)
    assert select(row * 0.5 * scale, 50).equal(select(row * 0.5, 50)) or scale == 2.0**-140
    assert select(row * scale, 50).any()


def test_huge_rows_of_equal_scores_do_not_overflow():
    assert len(chosen([1.0] * 40_000, 100)) == 40_000


def test_rows_do_not_depend_on_each_other_and_shape_is_kept():
    scores = torch.rand(6, 11, 13, dtype=torch.float64)
    together = select(scores, 50)
    assert together.shape == scores.shape
    for row in range(6):
        assert together[row].equal(select(scores[row : row + 1], 50)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_type(dtype):
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.0]], dtype=dtype)
    assert select(scores, 70).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_names_the_rows(value):
    scores = torch.ones(4, 9)
    scores[2, 5] = value
    with pytest.raises(ValueError, match=r"rows \[2\] of 4"):
        select(scores, 50)


@pytest.mark.parametrize("p", [0, -1, 100.01, 12.345, float("nan")])
def test_p_out_of_range(p):
    with pytest.raises(ValueError, match=r"p must be|cannot convert"):
        select(torch.ones(1, 4), p)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="'best'"):
        select(torch.ones(1, 4), 50, by="best")
    with pytest.raises(ValueError, match="floating-point"):
        select(torch.ones(1, 4, dtype=torch.int32), 50)
    with pytest.raises(ValueError, match=r"\(N, K\)"):
        select(torch.ones(4), 50)
    with pytest.raises(ValueError, match="no squares"):
        select(torch.ones(4, 0), 50)


@pytest.mark.parametrize("by", ["mass", "count"])
def test_several_p_at_once_are_the_packed_masks_of_each(by):
    scores, ps = torch.randn(3, 5, 7), (30, 50.5, 90)
    bits = select_bits(scores, ps, by=by)
    assert bits.shape == (3, 3, 5)
    for p, packed in zip(ps, bits, strict=True):
        assert packed.equal(pack(select(scores, p, by=by)))
    assert select_bits(scores, (), by=by).shape == (0, 3, 5)
    assert select_bits(scores[:0], ps, by=by).shape == (3, 0, 5)
