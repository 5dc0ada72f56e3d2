"""The engine on a GPU: the same bytes twice, and nothing lost where memory is short."""

import pytest
import torch

from igmask.bench.contestants import Setting, build
from igmask.engine import queue
from igmask.engine.ig import integrated_gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


@pytest.fixture(scope="module")
def setting():
    """A small network, images and targets on the GPU."""
    return build(Setting("resnet20", 16, 50, "cuda", 1))


@pytest.mark.parametrize("engine", ["eager", "cudagraph"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_twice_the_same_bytes(setting, precision, engine):
    network, images, target = setting
    options = {"target": target, "precision": precision, "engine": engine, "n_steps": 20}
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        one, other = (integrated_gradients(network, images, **options).values for _ in range(2))
    finally:
        torch.backends.cudnn.deterministic = before
    assert one.equal(other)


def test_memory_that_is_nearly_full_halves_batches_and_loses_nothing(setting, monkeypatch):
    network, images, target = setting
    options = {"target": target, "n_steps": 50}
    expected = integrated_gradients(network, images, **options).values
    sizes = []
    monkeypatch.setattr(
        queue, "halved", lambda size, halve=queue.halved: sizes.append(size) or halve(size)
    )
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free - 2**28, dtype=torch.uint8, device="cuda")
    try:
        found = integrated_gradients(network, images, **options, batch_size=800).values
    finally:
        del hog
        torch.cuda.empty_cache()
    assert sizes
    assert (found - expected).norm() < 1e-4 * expected.norm()
