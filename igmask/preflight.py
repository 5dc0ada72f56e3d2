"""Step: what would else be found after hours: does the model load, answer, and know the labels?"""

import json
from pathlib import Path

from igmask import arrays, models
from igmask.attribute import check_classes, check_labels
from igmask.baselines import read_baseline
from igmask.config import BASELINES, Model, stamp
from igmask.data import unnamed_classes
from igmask.errors import InputError


def preflight(index_path: Path, output: Path, *, model: Model, baseline: str = "black") -> None:
    """Write, for people to read, what a model is found to be: classes, their names, parameters.

    raises InputError if weights do not load or fit, hold NaN, if the output of a trial pass has
           no probabilities or is not (N, classes), if a label is not one of the classes, if which
           classes the dataset has is not said, or if the baseline is a file that cannot be used
    """
    records, made_by = arrays.read_records(index_path)
    network = models.load(model)
    n_classes = models.n_classes(network, model)
    check_classes(made_by, n_classes)
    check_labels(records, n_classes)
    if note := unnamed_classes(made_by, n_classes):
        raise InputError(f"the network {note}")
    if baseline not in BASELINES:
        read_baseline(baseline, models.complete(model).geometry)
    found = stamp("preflight", made_by) | {
        "n_classes": n_classes,
        "class_names": models.class_names(model) or made_by["classes"],
        "n_parameters": sum(p.numel() for p in network.parameters()),
    }
    arrays.write_text(output, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
