"""Attributions of a DataLoader, on disk."""

import copy
import warnings
from collections import UserDict
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import igmask
from igmask import arrays
from igmask.asked import config
from igmask.asked.recipes import STAGES
from igmask.engine.ig import Auto, integrated_gradients
from igmask.errors import InputError
from igmask.inputs import models


@pytest.fixture
def data():
    images = torch.rand(7, 3, 9, 9, dtype=torch.float64, generator=torch.manual_seed(0))
    return TensorDataset(images, torch.tensor([0, 1, 2, 3, 4, 0, 1]))


def test_every_batch_is_written_with_its_records(network, data, tmp_path):
    paths = igmask.attribute_loader(network, DataLoader(data, batch_size=3), tmp_path, n_steps=4)
    assert [path.name for path in paths] == ["00000.npy", "00001.npy", "00002.npy"]
    values = np.concatenate([arrays.read_array(path) for path in paths])
    expected = integrated_gradients(network, data.tensors[0], n_steps=4)
    np.testing.assert_allclose(values, expected.values, rtol=1e-6)  # float32 on disk
    records, made_by = arrays.read_records(arrays.records_of(paths[2]))
    assert records["label"].tolist() == [1]
    assert records["predicted"].tolist() == expected.predicted[6:].tolist()
    assert records["n_steps"].tolist() == [4]
    assert made_by["n_steps"] == 4


def test_labels_can_be_the_targets(network, data, tmp_path):
    (path,) = igmask.attribute_loader(
        network, DataLoader(data, batch_size=7), tmp_path, target="label", n_steps=Auto(first=2)
    )
    records, _ = arrays.read_records(arrays.records_of(path))
    assert records["target"].equals(records["label"])
    with pytest.raises(InputError, match="without labels"):
        igmask.attribute_loader(
            network, DataLoader(data.tensors[0]), tmp_path / "other", target="label"
        )


def test_what_is_as_by_default_may_be_said(network, data, tmp_path):
    loader = DataLoader(data, batch_size=7)
    (path,) = igmask.attribute_loader(network, loader, tmp_path, n_steps=Auto(first=25))
    written = path.stat().st_mtime_ns
    igmask.attribute_loader(network, loader, tmp_path, n_steps=Auto(), skip=None)
    assert path.stat().st_mtime_ns == written
    _, made_by = arrays.read_records(arrays.records_of(path))
    assert made_by["n_steps"]["first"] == 25
    assert "skip" not in made_by


def test_a_run_that_was_cut_short_goes_on(network, data, tmp_path):
    class Cut(DataLoader):
        def __iter__(self):
            for i, batch in enumerate(super().__iter__()):
                if i == 2:
                    raise KeyboardInterrupt
                yield batch

    with pytest.raises(KeyboardInterrupt):
        igmask.attribute_loader(network, Cut(data, batch_size=3), tmp_path, n_steps=4)
    (tmp_path / "00001.parquet").unlink()  # as if cut between the two files of a batch
    before = (tmp_path / "00000.npy").stat().st_mtime_ns
    paths = igmask.attribute_loader(network, DataLoader(data, batch_size=3), tmp_path, n_steps=4)
    assert (tmp_path / "00000.npy").stat().st_mtime_ns == before
    assert [len(arrays.read_array(path)) for path in paths] == [3, 3, 1]


def test_results_of_another_version_are_not_gone_on_with(network, data, tmp_path, monkeypatch):
    loader = DataLoader(data, batch_size=7)
    igmask.attribute_loader(network, loader, tmp_path, n_steps=4)
    monkeypatch.setitem(STAGES, "attribute", 0)
    with pytest.raises(InputError, match=r"00000\.npy is of other versions"):
        igmask.attribute_loader(network, loader, tmp_path, n_steps=4)


def test_other_results_in_the_folder_are_named(network, data, tmp_path):
    loader = DataLoader(data, batch_size=7)
    igmask.attribute_loader(network, loader, tmp_path, n_steps=4)
    with pytest.raises(InputError, match=r"00000\.npy is of other n_steps; choose another folder"):
        igmask.attribute_loader(network, loader, tmp_path, n_steps=5)
    with pytest.raises(InputError, match="of other rule"):
        igmask.attribute_loader(network, loader, tmp_path, n_steps=4, rule="left")
    others = DataLoader(TensorDataset(data.tensors[0].flip(0)), batch_size=7)
    with pytest.raises(InputError, match="is the loader shuffled"):
        igmask.attribute_loader(network, others, tmp_path, n_steps=4)
    labels = DataLoader(TensorDataset(data.tensors[0], data.tensors[1].flip(0)), batch_size=7)
    with pytest.raises(InputError, match="of other images"):
        igmask.attribute_loader(network, labels, tmp_path, n_steps=4)
    other = torch.nn.Sequential(network[0], torch.nn.ReLU(), *network[2:])  # the same weights
    with pytest.raises(InputError, match="of other model"):
        igmask.attribute_loader(other, loader, tmp_path, n_steps=4)
    with torch.no_grad():
        network[0].bias += 1
    with pytest.raises(InputError, match="of other model"):
        igmask.attribute_loader(network, loader, tmp_path, n_steps=4)
    with pytest.raises(InputError, match="'best'"):
        igmask.attribute_loader(network, loader, tmp_path, target="best")


def test_a_smaller_batch_may_go_on_where_a_larger_one_failed(network, data, tmp_path):
    loader = DataLoader(data, batch_size=7)
    igmask.attribute_loader(network, loader, tmp_path, n_steps=4, batch_size=64)
    igmask.attribute_loader(network, loader, tmp_path, n_steps=4, batch_size=2)


def test_a_stream_has_no_length(network, data, tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(data.tensors[0])

    paths = igmask.attribute_loader(
        network, DataLoader(Stream(), batch_size=4), tmp_path, n_steps=2
    )
    assert [len(arrays.read_array(path)) for path in paths] == [4, 3]


def test_gradients_that_are_not_finite_name_batch_and_image(tmp_path):
    class Root(torch.nn.Module):
        def forward(self, x):
            return x.sqrt().mean((2, 3)) * x.mean((1, 2, 3))[:, None]

    images = torch.ones(3, 2, 4, 4)
    images[2] = 0
    with pytest.raises(InputError, match="batch 1, image 0: NaN"):
        igmask.attribute_loader(
            Root().eval(), DataLoader(images, batch_size=2), tmp_path, of="logit"
        )


@pytest.mark.parametrize("keys", [("pixel_values", "labels"), ("image", "label")])
@pytest.mark.parametrize("kind", [dict, UserDict])  # transformers' batches are UserDicts
def test_batches_may_be_dictionaries(network, data, tmp_path, keys, kind):
    images, labels = data.tensors
    expected = integrated_gradients(network, images, target=labels, n_steps=4)
    batch = kind({"id": ["a"] * 7, **dict(zip(keys, (images, labels), strict=True))})
    (path,) = igmask.attribute_loader(network, [batch], tmp_path, target="label", n_steps=4)
    np.testing.assert_allclose(arrays.read_array(path), expected.values, rtol=1e-6)
    records, _ = arrays.read_records(arrays.records_of(path))
    assert records["label"].tolist() == labels.tolist()


@pytest.mark.parametrize("as_given", [torch.Tensor.numpy, torch.Tensor.tolist])
def test_labels_may_be_an_array_or_a_list(network, data, tmp_path, as_given):
    images, labels = data.tensors
    batches = [(images, as_given(labels))]
    (path,) = igmask.attribute_loader(network, batches, tmp_path, target="label", n_steps=2)
    records, _ = arrays.read_records(arrays.records_of(path))
    assert records["target"].tolist() == records["label"].tolist() == labels.tolist()


def test_names_beside_images_are_no_labels(network, data, tmp_path):
    batches = [(data.tensors[0], ["a.png"] * 7)]
    (path,) = igmask.attribute_loader(network, batches, tmp_path, n_steps=2)
    assert "label" not in arrays.read_records(arrays.records_of(path))[0]
    with pytest.raises(InputError, match=r"labels: .* got a list of 7; the number of"):
        igmask.attribute_loader(network, batches, tmp_path / "other", target="label", n_steps=2)


X = torch.zeros(2, 3, 9, 9, dtype=torch.float64)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X, torch.eye(5)[:2]), r"batch 0, labels: .* of several labels a row, .*argmax\(1\)"),
        ({"images": X, "labels": torch.eye(5)[:2]}, r"batch 0, labels: .*argmax\(1\)"),
        ((X, torch.tensor([1.0, 2.0])), r"batch 0, labels: .* .long\(\) makes them integers"),
        ((X, torch.tensor([[1], [2]])), r"batch 0, labels: .* .reshape\(-1\) makes"),
        ((X, torch.tensor([0, 1, 2])), r"batch 0, labels: .* of shape \(3,\)"),
        ((X, torch.tensor([1])), "batch 0: there is one label for 2 images"),
        ({"x": X, "y": 1}, "batch 0 has the keys x, y; exactly one of pixel_values, images, image"),
        ({"image": X, "images": X}, "batch 0 has the keys image, images; exactly one of"),
        ({"image": X, "label": 0, "labels": 0}, "exactly one of labels, label"),
        ({"image": [X, X]}, r"batch 0: images must be a tensor \(N, C, H, W\), got list"),
        ([X[0], X[1]], r"batch 0: images must be a tensor .*, got \(3, 9, 9\)"),
        ((), "batch 0: images must be a tensor .*, got NoneType"),
        ("photo.jpg", "batch 0: images must be a tensor .*, got str"),
    ],
)
@pytest.mark.parametrize("target", ["predicted", "label"])
def test_batches_of_another_kind_are_refused_before_the_network_runs(
    tmp_path, batch, message, target
):
    class Never(torch.nn.Module):
        def forward(self, _):
            raise AssertionError("the network has run")

    with pytest.raises(InputError, match=message):
        igmask.attribute_loader(Never().eval(), [batch], tmp_path, target=target)


@pytest.mark.parametrize("target", ["cat", 3, np.array([1, 2]), torch.tensor([1, 2]), None])
def test_targets_of_a_loader_are_named(network, data, tmp_path, target):
    with pytest.raises(InputError, match=r"unknown target .*; choose from predicted, label"):
        igmask.attribute_loader(network, DataLoader(data), tmp_path, target=target)


def frozen(network):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is of the past
        return torch.jit.freeze(torch.jit.script(network))


class Picking(torch.nn.Module):
    def __init__(self, network, factor):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x):
        return self.network(x) * self.factor


class Shifting(Picking):
    """It keeps what it saw last, which makes no other model of it."""

    def __init__(self, network, shift, function=torch.tanh):
        super().__init__(network, 1.0)
        self.shift, self.function, self.last, self.seen = shift, function, None, []
        self.eval()

    def forward(self, x):
        self.last = self.function(super().forward(x))
        self.seen.append(self.last)
        return self.last + sum(self.shift)


class Noting(Shifting):
    """It notes the size of what it saw, is shown with an address, and has a sparse buffer."""

    def __init__(self, network):
        super().__init__(network, ())
        self.size, self.options = None, {"alpha", "beta", "gamma"}
        self.register_buffer("sparse", torch.eye(3).to_sparse())

    def forward(self, x):
        self.size = tuple(x.shape)
        return super().forward(x)

    def extra_repr(self):
        return f"function={self.forward.__func__}"


def test_what_a_forward_notes_makes_no_other_model(network, data, tmp_path):
    model = Noting(network).double().eval()
    loader = DataLoader(data, batch_size=4)
    for wrapped in (model, model, torch.compile(model, backend="eager")):
        igmask.attribute_loader(wrapped, loader, tmp_path, n_steps=2)


def hooked(model):
    model.network.register_forward_hook(lambda module, given, found: 2 * found)
    return model


def of_one_name():
    for forward in (lambda self, x: self.network(x), lambda self, x: self.network(x) ** 2):
        yield lambda net, forward=forward: type("One", (Picking,), {"forward": forward})(
            net, 1
        ).eval()


@pytest.mark.parametrize(
    "ways",
    [
        lambda net: [models.frozen(net, model_of(mean), device="cpu") for mean in (0.0, 0.5)],
        lambda net: [Picking(net, factor).eval() for factor in (1, 2)],
        lambda net: [frozen(Picking(net, factor).eval()) for factor in (1.0, 2.0)],
        lambda net: [Picking(net, np.float32(factor)).eval() for factor in (1, 2)],
        lambda net: [Shifting(net, shift).eval() for shift in ((0.0, 1.0), (0.0, 2.0))],
        lambda net: [Shifting(net, (0.0,), act).eval() for act in (torch.tanh, torch.sigmoid)],
        lambda net: [Shifting(net, (), partial(F.leaky_relu, negative_slope=s)) for s in (0, 1)],
        lambda net: [Shifting(net, (), lambda u: 1 * u), Shifting(net, (), lambda u: 2 * u)],
        lambda net: [Picking(net, 1).eval(), hooked(Picking(copy.deepcopy(net), 1).eval())],
        lambda net: [kind(net) for kind in of_one_name()],
        lambda net: [frozen(net), frozen(copy.deepcopy(net).apply(halved))],
    ],
)
def test_attributions_of_another_model_are_not_taken_for_this_ones(ways, network, tmp_path):
    """Their weights are alike, but normalisation, a number, or what TorchScript froze is not."""
    images = torch.rand(2, 3, 9, 9)
    first, second = ways(network.float())
    igmask.attribute_loader(first, [images], tmp_path, n_steps=2)
    with pytest.raises(InputError, match="is of other model"):
        igmask.attribute_loader(second, [images], tmp_path, n_steps=2)
    igmask.attribute_loader(first, [images], tmp_path, n_steps=2)


def model_of(mean):
    given = {"source": "some:where", "size": 9, "mean": 3 * [mean], "std": 3 * [0.5]}
    return models.complete(config.model(given))


def halved(module):
    for value in module.parameters(recurse=False):
        value.data /= 2


def test_a_batch_whose_bytes_have_changed_is_computed_again(network, data, tmp_path):
    loader = DataLoader(data, batch_size=4)
    first, second = igmask.attribute_loader(network, loader, tmp_path, n_steps=2)
    before = first.read_bytes(), second.read_bytes()
    first.write_bytes(before[0][:-1] + bytes([before[0][-1] ^ 1]))
    time = second.stat().st_mtime_ns
    igmask.attribute_loader(network, loader, tmp_path, n_steps=2)
    assert (first.read_bytes(), second.read_bytes()) == before
    assert second.stat().st_mtime_ns == time
    first.write_bytes(before[0][:-9])  # cut short
    igmask.attribute_loader(network, loader, tmp_path, n_steps=2)
    assert (first.read_bytes(), second.read_bytes()) == before
    records = first.with_suffix(".parquet")
    records.write_bytes(records.read_bytes()[:-9])  # it may be anyone's, so it is left
    with pytest.raises(InputError, match=r"00000\.parquet: damaged, or none of igmask's"):
        igmask.attribute_loader(network, loader, tmp_path, n_steps=2)
