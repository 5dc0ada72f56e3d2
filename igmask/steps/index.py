"""Step: the images of a dataset, listed: name, path, label."""

from pathlib import Path
from typing import Any

from igmask import arrays
from igmask.inputs.data import index as listed
from igmask.inputs.data import numbered_classes
from igmask.inputs.own import code
from igmask.progress import say
from igmask.study.config import dataset, stamp


def index(settings: dict[str, Any], output: Path, *, seed: int) -> None:
    """Write the index of a dataset: of every image what `data.index` says.

    settings: the keys of the schema's `dataset`, kept with the records for the next steps
    """
    records, classes = listed(dataset(settings))
    made_by = stamp("index") | {"dataset": settings, "classes": classes, "seed": seed}
    if own := code(settings["source"]):
        made_by["read"] = {"code": arrays.digest_of_files(own)}
    if note := numbered_classes(made_by, records["label"]):
        say(note)
    arrays.write_records(output, records, made_by)
