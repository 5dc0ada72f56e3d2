"""Arrays and records on disk: whole or not there, and carrying the settings that made them.

A shard is an array `x.npy` with a row an image, and beside it `x.parquet`, the records of the same
images, each with the checksum of its row; the settings stand in the metadata of the records. Files
appear under their final name only once they are complete. Every step reads rows by `Shards`, which
compares them with their checksums.
"""

import errno
import hashlib
import json
import os
import platform
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache, cached_property
from itertools import chain, pairwise
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from igmask.asked.recipes import records_of as records_of  # where steps look for it
from igmask.errors import InputError, refusing

CHECKSUM = "crc32"  # the column of the records
KEPT = ".kept"  # a folder beside the records, in which `evaluate` keeps those it has finished

_METADATA = b"igmask"
_RECORDS = "records of igmask", pa.ArrowException, KeyError, TypeError
# Columns of tables that hold names.
_TEXTS = ("model", "mode", "fill", "mask", "truth", "condition", "first", "second")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MOST_SECONDS = 24 * 3600  # between two writes to a temporary file
ADVICE = "`igmask verify --remove` clears away what is damaged, and the next run makes it again"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes its place if the block succeeds.

    If it fails nothing is left, and what was at `path` before still is. If its process is killed,
    the temporary file goes when `path` is written next.

    raises OSError that names `path`, not the temporary, if there is no space left
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in _temporaries(path.parent.absolute()):
        if left.name.startswith(f".{path.name}.") and is_at_work(left) is False:
            left.unlink(missing_ok=True)
    # The host, since nodes of a cluster write to the same folder.
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno in _FULL:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def is_at_work(temporary: Path) -> bool | None:
    """Return whether the process that writes a temporary file runs; None if on another host.

    What was not written to for a day is nobody's, whatever process has that number now.
    """
    try:
        age_s = time.time() - temporary.stat().st_mtime
    except FileNotFoundError:  # it has its final name by now
        return True
    pid = temporary.name.split(".")[-2]
    if age_s > _MOST_SECONDS:
        return False
    ours = pid.isdecimal() and temporary.name.endswith(f".{platform.node()}.{pid}.tmp")
    if not ours or os.name != "posix":  # Windows takes signal 0 for Ctrl+C
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@cache
def _temporaries(folder: Path) -> list[Path]:
    """Those that lay in a folder when this process first wrote there; a look costs a listing."""
    return list(folder.glob(".*.tmp"))


class ArrayWriter:
    """Appends rows to a .npy file whose length is not known beforehand."""

    def __init__(self, file: BinaryIO, dtype: np.dtype, row_shape: tuple[int, ...]) -> None:
        self._file, self._dtype, self._row_shape = file, dtype, row_shape
        self._checksums: list[int] = []
        self.write_header()

    @property
    def checksums(self) -> np.ndarray:
        """Return the CRC-32 of the bytes of every row so far, uint32."""
        return np.array(self._checksums, dtype=np.uint32)

    def append(self, rows: np.ndarray) -> None:
        """Write rows (n, *row_shape), cast to the array's dtype."""
        if rows.shape[1:] != self._row_shape:
            raise ValueError(f"expected rows (n, {self._row_shape}), got {rows.shape}")
        plain = np.ascontiguousarray(rows, dtype=self._dtype)
        self._file.write(plain.data)
        self._checksums += checksums(plain)

    def write_header(self) -> None:
        """Write the number of rows so far over the header, in which NumPy leaves room for it."""
        self._file.seek(0)
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (len(self._checksums), *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def writing(path: Path, dtype: Any, row_shape: tuple[int, ...]) -> Iterator[ArrayWriter]:
    """Yield a writer of the array at `path`; memory does not grow with its length."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        writer = ArrayWriter(file, np.dtype(dtype), row_shape)
        yield writer
        writer.write_header()


def read_array(path: Path) -> np.ndarray:
    """Return a .npy file as a memory map, or raise InputError if it is none or cut short."""
    with _named(path, "a whole .npy array", EOFError, SyntaxError, TokenError):
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not found.dtype.isnative:  # the rows' checksums know nothing of the header
            raise ValueError(f"of {found.dtype}")
        return found


def checksums(rows: np.ndarray) -> list[int]:
    """Return the CRC-32 of the bytes of each row, as the records have them."""
    return [zlib.crc32(row.data) for row in np.ascontiguousarray(rows)]


def checksum_of_weights(weights: Mapping[str, np.ndarray]) -> int:
    """Return the CRC-32 of named arrays: names, dtypes, shapes and bytes, in the order of names."""
    found = 0
    for name, value in sorted(weights.items()):
        found = zlib.crc32(f"{name} {value.dtype.str} {value.shape} ".encode(), found)
        found = zlib.crc32(np.ascontiguousarray(value).data, found)
    return found


def check_weights(
    path: Path, weights: Mapping[str, np.ndarray], made_by: Mapping[str, Any]
) -> None:
    """Raise InputError if weights are not those that a file says were written; others' say none."""
    if CHECKSUM in made_by and made_by[CHECKSUM] != checksum_of_weights(weights):
        raise InputError(f"{path}: other weights than written; {ADVICE}")


def digest(records: pd.DataFrame) -> str:
    """Return what stands for an array and what its images are, however it is sharded.

    Of the rows' checksums and, as far as there are any, names, labels, positions, predictions.
    """
    whole = hashlib.sha256(records[CHECKSUM].to_numpy("<u4").tobytes())
    for column in records.columns.intersection(["label", "position", "predicted"]):
        whole.update(records[column].to_numpy("<i8").tobytes())
    if "name" in records:
        whole.update("\0".join(records["name"]).encode("utf-8", "surrogatepass"))
    return whole.hexdigest()


def digest_of_files(paths: list[Path]) -> str:
    """Return what stands for the content of files, in this order."""
    return hashlib.sha256(b"".join(sha256(path).digest() for path in paths)).hexdigest()


def sha256(path: Path) -> Any:
    """Return the hash, as hashlib has it, of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def write_records(path: Path, records: pd.DataFrame, settings: dict[str, Any]) -> None:
    """Write one record a row, with the settings in the metadata."""
    table = pa.Table.from_pandas(records, preserve_index=False)
    metadata = {**(table.schema.metadata or {}), _METADATA: json.dumps(settings).encode()}
    with replacing(path) as temporary:
        whole = table.replace_schema_metadata(metadata)
        pq.write_table(whole, temporary, write_page_checksum=True)


def read_records(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return (records, settings) of a file that `write_records` wrote, its checksums verified."""
    with _named(path, *_RECORDS):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        return file.read().to_pandas(), _settings(file.schema_arrow)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings alone of a file that `write_records` wrote."""
    with _named(path, *_RECORDS):
        return _settings(pq.read_schema(path))


def read_records_of(path: Path, *steps: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return (records, settings) as `read_records`; raise InputError if no such step wrote them."""
    records, settings = read_records(path)
    if settings.get("step") not in steps:
        raise InputError(f"{path}: no records of `igmask {steps[0]}`")
    return records, settings


def files_in(paths: Iterable[Path], *patterns: str) -> list[Path]:
    """Return the files among some paths, and those in the folders among them, a folder's sorted."""
    return [
        file
        for path in paths
        for file in (sorted(chain(*map(path.glob, patterns))) if path.is_dir() else [path])
    ]


class Batch(NamedTuple):
    """Some rows of an array.

    rows:   (n,) their numbers through all shards
    n_live: how many come first that no other batch has; the rest fill it up
    values: (n, …) the rows
    """

    rows: np.ndarray
    n_live: int
    values: np.ndarray


class Shards:
    """An array in shards, of which a few rows at a time are read, and checked as they are.

    paths:     of the arrays, in order
    records:   of all shards
    settings:  those that the shards share, with the skipped images of all
    row_shape: of the array
    """

    def __init__(self, paths: list[Path]) -> None:
        """Read the records; raise InputError if they, or the shards, do not belong together."""
        self.row_shape, *_ = [read_array(path).shape[1:] for path in paths]
        read = [read_records(records_of(path)) for path in paths]
        self.paths = paths
        self._starts = np.cumsum([0, *(len(records) for records, _ in read)])
        self.records = pd.concat([records for records, _ in read], ignore_index=True)
        self._written = self.records[CHECKSUM].to_numpy()
        self.settings = _shared(paths, [settings for _, settings in read])
        for i in range(len(paths)):
            self._array(i)

    @cached_property
    def digest(self) -> str:
        """What stands for the array and its images, as the function of that name has it."""
        return digest(self.records)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of some rows, by their numbers through all shards.

        A row that is there several times, to fill a batch, is read and checked once.

        raises InputError that names the file and an image, if its bytes are not those written
        """
        wanted, places = np.unique(rows, return_inverse=True)
        owners = np.searchsorted(self._starts, wanted, side="right") - 1
        parts = [self._checked(i, wanted[owners == i] - self._starts[i]) for i in np.unique(owners)]
        return np.concatenate(parts)[places]

    def batches(self, size: int, *, full: bool = False) -> Iterator[Batch]:
        """Yield the rows of the shards in order, `size` or fewer at once, each batch of one shard.

        Few rows are in memory at a time, and all are checked as by `read`.

        full: the last batch of a shard repeats its last row, so that all have one shape, which
              makes results independent of how images are sharded
        """
        for i, (first, end) in enumerate(pairwise(self._starts.tolist())):
            for start in range(0, end - first, size):
                values = self._checked(i, slice(start, start + size))
                places = np.arange(size if full else len(values)).clip(max=len(values) - 1)
                rows = first + start + places
                yield Batch(rows, len(values), values[places] if full else values)

    def n_batches(self, size: int) -> int:
        """Return how many `batches` there are."""
        return sum(-(-n_rows // size) for n_rows in np.diff(self._starts).tolist())

    def _checked(self, shard: int, rows: np.ndarray | slice) -> np.ndarray:
        # Mapped for this call only: pages that were read would else count as memory of the process,
        # which would grow with the dataset.
        found = np.array(self._array(shard)[rows])
        of_shard = slice(*self._starts[shard : shard + 2])
        wrong = np.array(checksums(found)) != self._written[of_shard][rows]
        if wrong.any():
            name = self.records["name"][of_shard].iloc[rows][wrong].iloc[0]
            raise InputError(f"{self.paths[shard]}: other bytes than written for {name}; {ADVICE}")
        return found

    def _array(self, shard: int) -> np.ndarray:
        path, n_records = self.paths[shard], np.diff(self._starts)[shard]
        array = read_array(path)
        if len(array) != n_records:
            raise InputError(
                f"{path}: {len(array)} rows, and {n_records} records beside it; {ADVICE}"
            )
        return array


def changed(found: Mapping[str, Any], made_by: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings in which what is there differs from what would be made.

    As JSON has them, so that a tuple is a list, and NaN equals itself.
    """
    old, new = (
        {key: json.dumps(value, sort_keys=True) for key, value in settings.items()}
        for settings in (found, made_by)
    )
    return sorted(key for key in old | new if old.get(key) != new.get(key))


def _shared(paths: list[Path], settings: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings of shards but for those of each, with the skipped images of all."""
    of_each = {"shard", "skipped"} | ({"read"} if len(paths) > 1 else set())
    first, *others = ({k: v for k, v in one.items() if k not in of_each} for one in settings)
    for path, other in zip(paths[1:], others, strict=True):
        if differing := changed(first, other):
            raise InputError(
                f"{path}: of other {' and '.join(differing)} than {paths[0]}; give the shards of "
                "one run, all and in order"
            )
    return first | {"skipped": [image for one in settings for image in one.get("skipped", [])]}


def _named(path: Path, what: str, *kinds: type[Exception]) -> AbstractContextManager[None]:
    """Turn what reading raises into InputError that names the file, and what it should be."""
    says = f"{path}: not {what}"
    return refusing(OSError, ValueError, *kinds, says=lambda error: f"{says} ({error}); {ADVICE}")


def _settings(schema: pa.Schema) -> dict[str, Any]:
    return json.loads(schema.metadata[_METADATA])


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_table(path: Path, *columns: str, texts: Iterable[str] = ()) -> pd.DataFrame:
    """Return a CSV of `igmask tables`; names of networks, fills and the like are texts, as "NA".

    columns: that it must have
    texts:   others that are texts, too
    raises   InputError if it is not there, no such table, or without one of these columns
    """
    says = f"{path}: not a table of igmask"
    with refusing(FileNotFoundError, ValueError, says=lambda error: f"{says}: {error}"):
        kinds = dict.fromkeys((*_TEXTS, *texts), str)
        found = pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=[""])
    if missing := [name for name in columns if name not in found]:
        raise InputError(f"{says}: it has no column {missing[0]}")
    return found


def shard_bounds(shard: str, n_images: int) -> tuple[int, int]:
    """Return the half-open range of images in shard `i-of-k`, i from 1; raise InputError if none.

    Shards differ by one image at most. The number of shards is part of the name, so that files of
    another division are never taken for this one's.
    """
    try:
        number, count = (int(part) for part in shard.split("-of-"))
    except ValueError:
        number, count = 0, 0
    if not 1 <= number <= count:
        raise InputError(f"a shard is named like 1-of-4, not {shard!r}")
    return (number - 1) * n_images // count, number * n_images // count
