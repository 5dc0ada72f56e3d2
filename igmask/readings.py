"""All readings of a study: which files and jobs `snakemake readings` is made of.

A reading's attribution is that of the study itself, where they are the same, and is computed once
for all readings that share it.
"""

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple

from igmask.asked import recipes
from igmask.asked.settings import Attribution, baseline_files
from igmask.errors import InputError
from igmask.inputs import contents
from igmask.plan import Workflow


class Reading(NamedTuple):
    """What is attributed, in a word for files; a square's score; how squares are selected."""

    attributed: str
    score: str
    by: str


class Readings:
    """The readings of one configuration; methods of a rule's name return a job's recipe."""

    def __init__(self, flow: Workflow) -> None:
        self.flow, self.asked = flow, flow.study.readings
        self.attributions: dict[str, Attribution] = {}
        for word, one in self._attributions():
            if word in self.attributions:
                both = f"{self.attributions[word].baseline!r} and {one.baseline!r}"
                raise InputError(f"readings.baselines: {both} would be the same folder; rename one")
            self.attributions[word] = one
        self.readings = [
            Reading(*one) for one in product(self.attributions, self.asked.score, self.asked.by)
        ]

    def _attributions(self) -> Iterator[tuple[str, Attribution]]:
        """Those of the readings, by words for files; the study's own is `own`."""
        asked, own = self.asked, self.flow.study.attribution
        for of, target, baseline in product(asked.of, asked.target, asked.baselines):
            one = dataclasses.replace(own, of=of, target=target, baseline=baseline)
            word = re.sub(r"[^A-Za-z0-9]+", "-", f"{of}-{target}-{baseline}")
            yield "own" if one == own else word, one

    def baseline(self, wildcards: SimpleNamespace) -> list[str]:
        """Return a reading's baseline, if it is an image file."""
        return baseline_files(self.attributions[wildcards.attributed].baseline)

    def baseline_contents(self, wildcards: SimpleNamespace) -> str:
        """Return what stands for a reading's baseline."""
        return contents.of_baseline(self.attributions[wildcards.attributed].baseline)

    def folder(self, wildcards: Any) -> str:
        """Return where what is made of a reading lies."""
        of = f"{wildcards.attributed}/{wildcards.score}-{wildcards.by}"
        return f"{self.flow.folder}/models/{wildcards.model}/readings/{of}"

    def scores(self, wildcards: SimpleNamespace) -> list[str]:
        """Return the scores of a reading, one array a shard."""
        if wildcards.attributed == "own":
            return self.flow.scores(wildcards)
        place = f"{self.flow.folder}/models/{wildcards.model}/readings/{wildcards.attributed}"
        return [f"{place}/scores/{shard}.npy" for shard in self.flow.shards]

    def record_names(self) -> list[str]:
        """Return the names of the records of every condition."""
        one = SimpleNamespace(model=next(iter(self.flow.models)))
        conditions = self.evaluate(one).conditions(self.flow.study.selection.p)
        return [f"{condition.name}.parquet" for condition in conditions]

    def records(self, wildcards: Any) -> list[str]:
        """Return the records of all readings of all models."""
        folders = [f"{folder}/records" for folder in self.folders(wildcards)]
        return [f"{folder}/{name}" for folder in folders for name in self.record_names()]

    def folders(self, wildcards: Any) -> list[str]:
        """Return the folders of all readings of all models."""
        every = product(self.flow.models, self.readings)
        return [self.folder(SimpleNamespace(model=model, **one._asdict())) for model, one in every]

    def masks(self, wildcards: Any) -> list[str]:
        """Return the masks of a reading, one file a p."""
        return [f"{self.folder(wildcards)}/masks/{name}.npy" for name in self.flow.mask_files()]

    def words(self, step: str) -> Callable[[Any], str]:
        """Return what gives the options of a step's job, from its rule's wildcards."""

        def options(wildcards: Any) -> str:
            more = {}
            if step == "attribute":
                more["references"] = self.flow.references(wildcards)
            if step == "evaluate":
                more = {"masks": self.masks(wildcards), "scores": self.scores(wildcards)}
            return shlex.join(recipes.words(getattr(self, step)(wildcards), **more))

        return options

    def attribute(self, wildcards: Any) -> recipes.Attribute:
        """Return the recipe of a reading's scores."""
        own = self.flow.attribute(wildcards)
        return dataclasses.replace(own, attribution=self.attributions[wildcards.attributed])

    def mask(self, wildcards: Any) -> recipes.Mask:
        """Return the recipe of a reading's masks."""
        p = self.flow.study.selection.p
        return recipes.Mask(p, by=wildcards.by, score=wildcards.score)

    def evaluate(self, wildcards: Any) -> recipes.Evaluate:
        """Return the recipe of a reading's records."""
        controls = tuple(name for name in self.asked.controls if name != "none")
        how: dict[str, Any] = {"fills": self.asked.fills, "controls": controls, "points": 0}
        score = getattr(wildcards, "score", self.flow.study.squares.score)
        return dataclasses.replace(self.flow.evaluate(wildcards), **how, score=score)
