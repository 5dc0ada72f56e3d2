"""Where images come from: a file a kind of dataset, and its entry in `SOURCES`.

Another one is a file with the two functions of a `Source`, an entry here, its name in
`asked.settings.SOURCES`, and in `asked.settings.Dataset` the keys that it needs and has.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image

from igmask.asked.settings import Dataset, is_own
from igmask.inputs.sources import (
    demo,
    folder,
    function,
    parquet,
    photos,
    table,
    torchvision_,
    webdataset,
)


class Source(NamedTuple):
    """How images are listed and opened, and what else is asked about where they come from.

    listed:        dataset → (columns name, path and label, class names); the path is that of the
                   file that holds the image, empty where there is none. Of files that hold many,
                   further columns say where in it, and `mark` stands for what said so
    opener:        dataset, seed → the function that opens the image of an index record, in RGB,
                   from any thread, and raises InputError, naming it, if it cannot be read
    is_relisted:   listing is cheap and may find something else another time
    lists_classes: who lists all classes in the order of the network's outputs, if anyone does
    is_labelled:   images have labels; else what a network says of an image is its label
    has_folders:   images are in the folders in `root`, which are its classes
    own_classes:   what its class names are called, if they alone say which class a label is
    """

    listed: Callable[[Dataset], tuple[dict[str, Any], list[str]]]
    opener: Callable[..., Callable[[Any], Image.Image]]
    is_relisted: bool = False
    lists_classes: str = ""
    is_labelled: bool = True
    has_folders: bool = False
    own_classes: str = ""


SOURCES = {
    "demo": Source(demo.listed, demo.opener, lists_classes="the demo"),
    "folder": Source(
        folder.listed,
        folder.opener,
        is_relisted=True,
        has_folders=True,
        own_classes="class folders",
    ),
    "photos": Source(photos.listed, folder.opener, is_relisted=True, is_labelled=False),
    "csv": Source(table.listed, folder.opener, is_relisted=True),
    "parquet": Source(
        parquet.listed, parquet.opener, is_relisted=True, own_classes="classes of its own"
    ),
    "webdataset": Source(webdataset.listed, webdataset.opener, is_relisted=True),
    "torchvision": Source(
        torchvision_.listed, torchvision_.opener, own_classes="classes of its own"
    ),
}
FUNCTION = Source(
    function.listed, function.opener, is_relisted=True, lists_classes="the dataset's function"
)


def source_of(name: str) -> Source:
    """Return the source of `dataset.source`: one of SOURCES, or a function of the user's own."""
    return FUNCTION if is_own(name) else SOURCES[name]
