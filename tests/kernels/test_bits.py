"""Packed masks against NumPy's bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igmask.kernels import pack, unpack


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 4), p=st.integers(1, 13), q=st.integers(1, 13), seed=st.integers(0, 999))
def test_pack_sets_the_bits_and_unpack_returns_the_mask(n, p, q, seed):
    mask = np.random.default_rng(seed).random((n, p, q)) < 0.5
    bits = pack(torch.from_numpy(mask))
    squares = [row + [False] * (-len(row) % 8) for row in mask.reshape(n, -1).tolist()]
    expected = [
        [sum(bit << i for i, bit in enumerate(row[at : at + 8])) for at in range(0, len(row), 8)]
        for row in squares
    ]
    assert bits.tolist() == expected
    assert unpack(bits, (p, q)).equal(torch.from_numpy(mask))


def test_unused_bits_are_zero():
    assert pack(torch.ones(1, 9, dtype=torch.bool)).tolist() == [[255, 1]]


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="bool mask"):
        pack(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"uint8 \(N, 2\)"):
        unpack(torch.zeros(1, 3, dtype=torch.uint8), (3, 3))


def test_masks_lie_in_memory_as_they_are_indexed():
    assert unpack(pack(torch.ones(2, 6, 7, dtype=torch.bool)), (6, 7)).is_contiguous()
