"""Step: the images of a shard, decoded once, in the geometry of a network's input."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from igmask import arrays
from igmask.asked import recipes
from igmask.asked.config import dataset
from igmask.asked.recipes import Prepare, stamp
from igmask.asked.settings import Geometry
from igmask.devices import n_cores
from igmask.errors import InputError
from igmask.inputs.data import opener
from igmask.inputs.decode import fit
from igmask.progress import progress

In = TypeVar("In")
Out = TypeVar("Out")

WINDOW = 4  # images a worker, at work, waiting for it or waiting to be written


def prepare(
    index_path: Path,
    output: Path,
    recipe: Prepare,
    *,
    workers: int | None = None,
) -> None:
    """Write the images of one shard, (n, size, size, 3) uint8, and their records.

    recipe:  with on_bad_image `skip` an image that cannot be decoded is left out and listed in the
             settings; a shard may be left without images, a dataset not
    workers: threads that decode, a core each by default; the files do not depend on them
    raises   InputError that names every bad image of the shard, if they are not to be skipped
    """
    geometry, shard = recipe.geometry, recipe.shard
    records, made_by = arrays.read_records(index_path)
    first, last = arrays.shard_bounds(shard, len(records))
    records = records.iloc[first:last]
    good, skipped = [], []
    found = decoded(records, made_by, geometry, workers=workers)
    with arrays.writing(output, np.uint8, (geometry.size, geometry.size, 3)) as images:
        shown = progress(found, total=len(records), unit="images", label=f"prepare {shard}")
        for name, pixels in zip(records["name"], shown, strict=True):
            good.append(not isinstance(pixels, InputError))
            if isinstance(pixels, InputError):
                skipped.append([str(name), str(pixels)])
            else:
                images.append(pixels[np.newaxis])
        if skipped and recipe.on_bad_image == "error":
            lines = "\n".join(f"  {name}: {reason}" for name, reason in skipped)
            raise InputError(
                f"{len(skipped)} of {len(records)} images cannot be used; mend or remove them, or "
                f"set dataset.on_bad_image to skip\n{lines}"
            )
    kept = records.loc[good, ["name", "label", "position"]].reset_index(drop=True)
    kept[arrays.CHECKSUM] = images.checksums
    made_by |= stamp("prepare", made_by) | recipes.made_by(recipe) | {"skipped": skipped}
    arrays.write_records(arrays.records_of(output), kept, made_by)


def decoded(
    records: pd.DataFrame,
    made_by: dict[str, Any],
    geometry: Geometry,
    *,
    workers: int | None = None,
) -> Iterator[np.ndarray | InputError]:
    """Yield the pixels (size, size, 3) uint8 of each image, or what is wrong with it, in order.

    records: of the index, or some of them
    made_by: the settings of the index
    workers: threads; a core each by default
    """
    open_image = opener(dataset(made_by["dataset"]), seed=made_by["seed"])

    def decode(record: Any) -> np.ndarray | InputError:
        try:
            return fit(open_image(record), geometry)
        except InputError as error:
            return error

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, on what it then decodes all the same
        yield from in_order(decode, records.itertuples(index=False), workers=workers or n_cores())


def in_order(work: Callable[[In], Out], items: Iterable[In], *, workers: int) -> Iterator[Out]:
    """Yield work(item) of every item, in their order, by threads; Pillow and NumPy free the GIL.

    WINDOW items a worker are at work or done and not yielded, and no more.
    """
    ahead: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            if len(ahead) == WINDOW * workers:
                yield ahead.popleft().result()
            ahead.append(pool.submit(work, item))
        while ahead:
            yield ahead.popleft().result()
