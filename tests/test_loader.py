"""Attributions of a DataLoader, on disk."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import igmask
from igmask import arrays, config
from igmask.errors import InputError
from igmask.ig import Auto, integrated_gradients


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
    monkeypatch.setitem(config.STAGES, "attribute", 0)
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
            return x.sqrt().mean((2, 3)) * x.mean()

    images = torch.ones(3, 2, 4, 4)
    images[2] = 0
    with pytest.raises(InputError, match="batch 1, image 0: NaN"):
        igmask.attribute_loader(
            Root().eval(), DataLoader(images, batch_size=2), tmp_path, of="logit"
        )
