"""Step: the images of a dataset, listed: name, path, label."""

from pathlib import Path

from igmask import arrays
from igmask.asked import recipes
from igmask.asked.config import dataset
from igmask.asked.own import code_of
from igmask.asked.recipes import Index, stamp
from igmask.inputs.data import index as listed
from igmask.inputs.data import left_out, numbered_classes
from igmask.progress import say


def index(output: Path, recipe: Index) -> None:
    """Write the index of a dataset: of every image what `data.index` says.

    The dataset's settings are kept with the records for the next steps.
    """
    images = dataset(recipe.dataset)
    records, classes = listed(images)
    made_by = stamp("index") | recipes.made_by(recipe) | {"classes": classes, "seed": recipe.seed}
    if code := code_of(recipe.dataset["source"]):
        made_by["read"] = {"code": arrays.digest_of_files(code)}
    for note in (numbered_classes(made_by, records["label"]), left_out(images)):
        if note:
            say(note)
    arrays.write_records(output, records, made_by)
