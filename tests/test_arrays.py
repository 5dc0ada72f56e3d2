"""Files are whole or not there."""

import errno
import os
import subprocess
import sys
import zlib
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from steps import run_train

from igmask import arrays
from igmask.asked import config
from igmask.errors import InputError
from igmask.report.drawing import Column, write_table


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


WRITERS = {
    "array": lambda path: write_array(path, np.ones((1, 100_000))),
    "records": lambda path: arrays.write_records(
        path, pd.DataFrame({"x": np.random.default_rng(0).random(100_000)}), {}
    ),
    "text": lambda path: arrays.write_text(path, "x" * 100_000),
    "weights": lambda path: run_train(
        path,
        model=config.model(
            {
                "source": "igmask.zoo:small_resnet",
                "size": 64,
                "train": {"epochs": 1, "batch_size": 2, "learning_rate": 0.1},
            }
        ),
        n_train=2,
        seed=0,
    ),
    "picture": lambda path: write_table(
        path, [Column("x", [np.random.default_rng(0).random((300, 300))], [""])], row_names=["x"],
        title="x",
    ),
}  # fmt: skip


def write_array(path, rows):
    with arrays.writing(path, np.float64, rows.shape[1:]) as writer:
        writer.append(rows)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_said_of_the_file_that_was_to_be(full_disk, kind):
    with pytest.raises(OSError, match="No space left on device") as caught:
        WRITERS[kind](full_disk / "x.png")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(full_disk / "x.png"))
    assert list(full_disk.iterdir()) == []


IN_ANOTHER_PROCESS = """
import os, signal, sys, time
from pathlib import Path
from igmask import arrays
with arrays.replacing(Path("x.npy")) as temporary:
    temporary.touch()
    print("at work", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_goes_with_the_next_write_and_no_other(tmp_path):
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            (temporary,) = tmp_path.iterdir()
            arrays.write_text(tmp_path / "x.npy", "")
            assert arrays.is_at_work(temporary)
            assert temporary.exists()
        finally:
            process.kill()
    other = tmp_path / temporary.name.replace("x.npy", "y.npy")
    elsewhere, long_ago = (tmp_path / f".x.npy.{host}.17.tmp" for host in ("elsewhere", "old"))
    for path in (other, elsewhere, long_ago):
        path.touch()
    os.utime(long_ago, (1e9, 1e9))
    assert [arrays.is_at_work(path) for path in (temporary, elsewhere, long_ago)] == [
        False, None, False
    ]  # fmt: skip
    arrays._temporaries.cache_clear()  # as in the next process
    arrays.write_text(tmp_path / "x.npy", "")
    assert {*tmp_path.iterdir()} == {tmp_path / "x.npy", other, elsewhere}
    arrays.write_text(tmp_path / "y.npy", "")
    assert {*tmp_path.iterdir()} == {tmp_path / "x.npy", tmp_path / "y.npy", elsewhere}


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


def written(folder, n_rows, **settings):
    """Shards of so many rows each: (paths, the rows of all)."""
    whole = np.random.default_rng(0).random((sum(n_rows), 2, 3), dtype=np.float32)
    paths = []
    for i, (first, last) in enumerate(pairwise(np.cumsum([0, *n_rows]))):
        paths.append(folder / f"{i}.npy")
        with arrays.writing(paths[-1], np.float32, (2, 3)) as writer:
            writer.append(whole[first:last])
        records = pd.DataFrame({"name": [f"image {row}" for row in range(first, last)]})
        records["crc32"] = writer.checksums
        own = {"shard": f"{i + 1}-of-{len(n_rows)}", "skipped": [[f"bad {i}", "empty"]]}
        arrays.write_records(arrays.records_of(paths[-1]), records, own | settings)
    return paths, whole


def flip(path, row, row_bytes=24):
    """Change one bit of a row of an array, and leave the time of change."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) - arrays.read_array(path).nbytes + row * row_bytes + 5] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("n_rows", [(7,), (3, 4), (0, 3, 0, 3, 1, 0)])
def test_shards_are_read_as_one_array(tmp_path, n_rows):
    paths, whole = written(tmp_path, n_rows, side=3)
    shards = arrays.Shards(paths)
    assert shards.row_shape == (2, 3)
    assert shards.records["name"].tolist() == [f"image {row}" for row in range(7)]
    assert shards.settings["side"] == 3
    assert [name for name, _ in shards.settings["skipped"]] == [
        f"bad {i}" for i in range(len(n_rows))
    ]
    for rows in ([0], [6, 2, 2, 0, 6], range(7)):
        np.testing.assert_array_equal(shards.read(np.array(rows)), whole[list(rows)])
    for size in (1, 2, 100):
        found = list(shards.batches(size))
        assert len(found) == shards.n_batches(size)
        assert max(len(batch.values) for batch in found) <= size
        for batch in found:
            np.testing.assert_array_equal(batch.values, whole[batch.rows])
            assert batch.n_live == len(batch.rows)
        assert [row for batch in found for row in batch.rows] == list(range(7))


def test_full_batches_repeat_the_last_row_of_a_shard(tmp_path):
    paths, whole = written(tmp_path, (3, 4))
    found = list(arrays.Shards(paths).batches(2, full=True))
    assert [batch.rows.tolist() for batch in found] == [[0, 1], [2, 2], [3, 4], [5, 6]]
    assert [batch.n_live for batch in found] == [2, 1, 2, 2]
    for batch in found:
        np.testing.assert_array_equal(batch.values, whole[batch.rows])


@pytest.mark.parametrize("row", range(7))
def test_no_row_of_other_bytes_is_read(tmp_path, row):
    paths, whole = written(tmp_path, (3, 4))
    shards = arrays.Shards(paths)
    shard, own = (0, row) if row < 3 else (1, row - 3)
    flip(paths[shard], own)
    others = np.delete(np.arange(7), row)
    np.testing.assert_array_equal(shards.read(others), whole[others])
    message = rf"{shard}\.npy: other bytes than written for image {row}; `igmask verify --remove`"
    with pytest.raises(InputError, match=message):
        shards.read(np.arange(7))
    with pytest.raises(InputError, match=message):
        list(shards.batches(2))


def test_a_row_that_fills_a_batch_is_checked_once(tmp_path, monkeypatch):
    paths, whole = written(tmp_path, (3, 4))
    shards, checked = arrays.Shards(paths), []
    monkeypatch.setattr(
        arrays, "checksums", lambda rows: checked.extend(rows) or [zlib.crc32(row) for row in rows]
    )
    found = shards.read(np.array([5, 6, 6, 6, 6, 6]))
    np.testing.assert_array_equal(found, whole[[5, 6, 6, 6, 6, 6]])
    assert len(checked) == 2


def test_shards_of_two_runs_are_refused(tmp_path):
    (first, second), _ = written(tmp_path, (3, 4), side=3, model="a")
    records, settings = arrays.read_records(arrays.records_of(second))
    arrays.write_records(arrays.records_of(second), records, settings | {"model": "b"})
    with pytest.raises(InputError, match=r"1\.npy: of other model than .*0\.npy"):
        arrays.Shards([first, second])
    arrays.write_records(arrays.records_of(second), records[:3], settings)
    with pytest.raises(InputError, match=r"1\.npy: 4 rows, and 3 records"):
        arrays.Shards([first, second])


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


def test_no_damage_to_an_arrays_header_goes_by(tmp_path):
    """Every bit of it: the rows' checksums know nothing of the order of their bytes."""
    path, rows = tmp_path / "x.npy", np.arange(6, dtype=np.float32).reshape(2, 3)
    with arrays.writing(path, np.float32, (3,)) as array:
        array.append(rows)
    records = pd.DataFrame({"name": ["a", "b"], arrays.CHECKSUM: array.checksums})
    arrays.write_records(arrays.records_of(path), records, {})
    content, n_refused = path.read_bytes(), 0
    for bit in range(8 * (len(content) - rows.nbytes)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = arrays.Shards([path]).read(np.arange(2))
        except InputError:
            n_refused += 1
            continue
        assert found.tolist() == rows.tolist()
    assert n_refused > 300
