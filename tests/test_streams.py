"""Each use of random numbers has its own, whatever NumPy makes of missing words of a seed."""

from itertools import product

import numpy as np
import pytest

from igmask.streams import Stream, rng


@pytest.mark.parametrize("seed", [0, 1, 7, 2**40])
def test_no_two_uses_draw_the_same(seed):
    words = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (3, 0)]
    uses = {(stream, *where) for stream, where in product(Stream, words)}
    # Of one use, zeros at the end are as good as none: it has always as many words.
    uses = {use for use in uses if use[-1] or len(use) == 1}
    first = {tuple(rng(seed, *use).integers(0, 2**63, 2)) for use in uses}
    assert len(first) == len(uses) > 20


def test_a_missing_word_is_a_zero():
    """Which is why no two streams may have one number."""
    one, other = (np.random.default_rng(words).random() for words in ([7, 3], [7, 3, 0]))
    assert one == other
    assert len({stream.value for stream in Stream.__members__.values()}) == len(Stream.__members__)
