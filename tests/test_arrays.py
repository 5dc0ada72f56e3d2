"""Files are whole or not there."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from igmask import arrays
from igmask.errors import InputError


def test_arrays_are_appended_and_read_back_mapped(tmp_path):
    rows = np.random.default_rng(0).integers(0, 255, (7, 4, 5), dtype=np.uint8)
    path = tmp_path / "deep" / "x.npy"
    with arrays.writing(path, np.uint8, (4, 5)) as writer:
        writer.append(rows[:3])
        writer.append(rows[3:])
    found = arrays.read_array(path)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, rows)
    np.testing.assert_array_equal(np.load(path), rows)


def test_the_header_has_room_for_any_length(tmp_path):
    path = tmp_path / "x.npy"
    with arrays.writing(path, np.float32, (1,)) as writer:
        for _ in range(12):
            writer.append(np.ones((10_000, 1)))
    assert arrays.read_array(path).shape == (120_000, 1)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.npy"
    with arrays.writing(path, np.uint8, (2,)) as writer:
        writer.append(np.ones((3, 2)))

    def fail():
        with arrays.writing(path, np.uint8, (2,)) as writer:
            writer.append(np.zeros((1, 2)))
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert arrays.read_array(path).shape == (3, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["x.npy"]


def test_a_full_disk_leaves_no_file(full_disk):
    def fill():
        with arrays.writing(full_disk / "x.npy", np.uint8, (1024,)) as writer:
            for _ in range(200):
                writer.append(np.ones((1, 1024)))

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert list(full_disk.iterdir()) == []
    with pytest.raises(OSError, match="No space left"):
        arrays.write_text(full_disk / "t.txt", "x" * 100_000)
    assert list(full_disk.iterdir()) == []


def test_rows_of_another_shape_are_an_error(tmp_path):
    with (
        pytest.raises(ValueError, match="expected rows"),
        arrays.writing(tmp_path / "x.npy", np.uint8, (2,)) as writer,
    ):
        writer.append(np.zeros((1, 3)))


def test_truncated_and_foreign_arrays_are_named(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.ones((100, 10)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"x\.npy: not a whole"):
        arrays.read_array(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"x\.npy: not a whole"):
        arrays.read_array(path)
    with pytest.raises(InputError, match="nosuch"):
        arrays.read_array(tmp_path / "nosuch.npy")


def test_pickled_arrays_are_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not a whole"):
        arrays.read_array(path)


def test_records_carry_their_settings(tmp_path):
    records = pd.DataFrame({"name": ["a b", "ü'\";x"], "label": [0, 1]})
    settings = {"step": "index", "classes": ["Katze", "犬"]}
    arrays.write_records(tmp_path / "x.parquet", records, settings)
    found, found_settings = arrays.read_records(tmp_path / "x.parquet")
    pd.testing.assert_frame_equal(found, records)
    assert found_settings == settings


def test_a_digest_is_of_the_rows_and_of_what_they_are_of():
    records = pd.DataFrame(
        {"name": ["a", "b"], "label": [0, 1], "position": [0, 1], "predicted": [1, 1], "crc32": 7}
    )
    whole = arrays.digest(records)
    assert arrays.digest(records.assign(found=3)) == whole  # what was found of them is not theirs
    for column in records:
        other = records.copy()
        other[column] = other[column].iloc[::-1].to_numpy() if column == "name" else [5, 6]
        assert arrays.digest(other) != whole


def test_foreign_records_are_named(tmp_path):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet: not records"):
        arrays.read_records(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_text("no parquet")
    with pytest.raises(InputError, match=r"y\.parquet: not records"):
        arrays.read_records(tmp_path / "y.parquet")


def test_no_damage_of_records_is_more_than_an_input_error(tmp_path):
    path = tmp_path / "x.parquet"
    records = pd.DataFrame({"name": ["a", "b"], "label": [0, 1]})
    arrays.write_records(path, records, {"classes": ["ü"]})
    whole = path.read_bytes()
    n_refused = 0
    for i in range(0, len(whole), 3):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x81]) + whole[i + 1 :])
        try:
            arrays.read_records(path)
        except InputError:
            n_refused += 1
    assert n_refused > len(whole) // 3 // 4


@pytest.mark.parametrize("n_images", [0, 1, 10, 1000, 50_000])
@pytest.mark.parametrize("n_shards", [1, 4, 17])
def test_shards_partition_the_images(n_images, n_shards):
    bounds = [arrays.shard_bounds(f"{i + 1}-of-{n_shards}", n_images) for i in range(n_shards)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == n_images
    assert all(a[1] == b[0] for a, b in pairwise(bounds))
    sizes = [last - first for first, last in bounds]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shard", ["0-of-4", "5-of-4", "4", "a-of-b", "1-of-0", "-1-of-4"])
def test_no_such_shard(shard):
    with pytest.raises(InputError, match="1-of-4"):
        arrays.shard_bounds(shard, 10)
