"""What a study is made of: its files, and the job and recipe of each; Snakefile and tools ask here.

The words of a job carry every setting that its result depends on and no other, in a fixed order, as
one string: so that Snakemake re-runs a job exactly when one of its own settings has changed.
"""

import dataclasses
import hashlib
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import product, starmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from igmask.errors import InputError
from igmask.inputs.files import class_folders, files_below, images_below
from igmask.study import config, recipes
from igmask.study.fields import given
from igmask.study.own import code_of
from igmask.study.recipes import STAGES, Condition, made_by, records_of, stamp
from igmask.study.settings import (
    Dataset,
    Model,
    is_baseline_file,
    is_own,
    own_code,
    percent,
)


@dataclass(frozen=True)
class Made:
    """A file of the study, and what it should be.

    settings: those that it carries, or some of them; None if it carries none
    read:     what it was made of: arrays, in order, or files of weights or code
    """

    path: Path
    settings: dict[str, Any] | None = None
    read: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def outputs(self) -> list[Path]:
        """Return the files of the same job: an array has its records beside it."""
        paired = self.path.suffix == ".npy"
        return [self.path, records_of(self.path)] if paired else [self.path]


class Workflow:
    """The files and jobs of one configuration; methods of a step's name return a job's recipe."""

    def __init__(self, settings: Mapping[str, Any], *, with_files: bool = True) -> None:
        self.study = config.parse(settings, with_files=with_files)
        dataset = self.study.dataset
        self.data = str(dataset.name) + (f"-first{dataset.limit}" if dataset.limit else "")
        self.folder = f"results/{self.data}"
        self.models = self._placed_models()
        self.geometries = {model.geometry.name: model.geometry for model in self.models.values()}
        n_shards, masking = self.study.compute.shards, self.study.masking
        self.shards = [f"{i}-of-{n_shards}" for i in range(1, n_shards + 1)]
        masked = product(masking.modes, self.study.selection.p, masking.fills)
        self.conditions = [Condition("original"), *starmap(Condition, masked)]

    def weights(self, wildcards: SimpleNamespace) -> list[str]:
        """The local weights file of a model, if it has one, so that a new one re-runs its jobs."""
        model = self.models[wildcards.model]
        return [str(model.weights)] if model.weights_kind == "file" else []

    def baseline(self, wildcards: Any) -> list[str]:
        """The baseline, if it is an image file."""
        baseline = self.study.attribution.baseline
        return [baseline] if is_baseline_file(baseline) else []

    def images(self, wildcards: SimpleNamespace) -> list[str]:
        """The image arrays of a model: of one shard if the job has one, else of all."""
        shards = [wildcards.shard] if hasattr(wildcards, "shard") else self.shards
        geometry = self.models[wildcards.model].geometry.name
        return [f"{self.folder}/images/{geometry}/{shard}.npy" for shard in shards]

    def scores(self, wildcards: SimpleNamespace) -> list[str]:
        """The score arrays of a model, one a shard."""
        folder = f"{self.folder}/models/{wildcards.model}/scores"
        return [f"{folder}/{shard}.npy" for shard in self.shards]

    def mask_files(self) -> list[str]:
        """The names of the masks of every p, without their ending."""
        return [percent(p) for p in self.study.selection.p]

    def masks(self, wildcards: SimpleNamespace) -> list[str]:
        """The masks of a model, one file a p."""
        folder = f"{self.folder}/models/{wildcards.model}/masks"
        return [f"{folder}/{name}.npy" for name in self.mask_files()]

    def records_folder(self, wildcards: SimpleNamespace) -> str:
        """Where the records of a model are."""
        return f"{self.folder}/models/{wildcards.model}/records"

    def record_files(self) -> list[str]:
        """The names of the records of every condition."""
        return [f"{condition.name}.parquet" for condition in self.conditions]

    def records(self, wildcards: SimpleNamespace) -> list[str]:
        """The records of every condition of a model, or of all models for the tables."""
        names = [wildcards.model] if hasattr(wildcards, "model") else list(self.models)
        folders = [self.records_folder(SimpleNamespace(model=name)) for name in names]
        return [f"{folder}/{name}" for folder in folders for name in self.record_files()]

    def example_figures(self) -> list[str]:
        """The pictures of one model, with a wildcard for its name."""
        modes = self.study.masking.modes
        kinds = ["attributions", *modes] + (["keep_drop"] if len(modes) == 2 else [])
        return [f"results/figures/{kind}-{{model}}.png" for kind in kinds]

    def figures(self) -> list[str]:
        """Every picture of the study."""
        curves = [f"results/figures/accuracy-{against}.png" for against in ("p", "area")]
        examples = product(self.models, self.example_figures())
        return curves + [figure.format(model=name) for name, figure in examples]

    def dataset_contents(self, wildcards: SimpleNamespace) -> str:
        """Of `labels`, `classes`, a function's code, and the names of images and class folders, or
        of the files that hold many images, and their sizes."""
        dataset = self.study.dataset
        files = [Path(path) for path in dataset.tables.values()]
        digests = [_digest(path) for path in files + code_of(dataset.source)]
        if dataset.root and dataset.source in Dataset.FOLDERS:
            if ending := Dataset.ARCHIVES.get(dataset.source):
                held = files_below(dataset.root, (ending,)).items()
                names = [f"{name} {os.path.getsize(path)}" for name, path in held]
            else:
                names = sorted(images_below(dataset.root)) + class_folders(dataset.root)
            digests.append(hashlib.sha256("\n".join(names).encode("utf-8", "replace")).hexdigest())
        return " ".join(digests)

    def model_contents(self, wildcards: SimpleNamespace) -> str:
        """Of a model's weights file, and of its module or package in the working directory."""
        model = self.models[wildcards.model]
        files = code_of(model.source)
        if model.weights_kind == "file" and model.train is None:
            files.append(Path(str(model.weights)))
        return " ".join(_digest(path) for path in files)

    def contents(self, step: str) -> Callable[[Any], str]:
        """Return what gives `model_contents`, and those of what a step has of the user's own."""

        def of(wildcards: Any) -> str:
            own = map(_digest, own_code(*getattr(self, step)(wildcards).own))
            return " ".join(filter(None, [self.model_contents(wildcards), *own]))

        return of

    def baseline_contents(self, wildcards: SimpleNamespace) -> str:
        """Of the baseline, if it is an image file or a function of one's own."""
        baseline, files = self.study.attribution.baseline, map(Path, self.baseline(wildcards))
        return " ".join(map(_digest, code_of(baseline) if is_own(baseline) else files))

    def prepare_threads(self, cores: int | None) -> int:
        """Of `igmask prepare`: an equal share of the cores, or one where their number is open."""
        return max(1, (cores or 1) // (len(self.shards) * len(self.geometries)))

    def words(self, step: str) -> Callable[[Any], str]:
        """Return what gives the options of a step's job, from its rule's wildcards.

        From these alone: Snakemake compares no params that are made of input or output.
        """

        def options(wildcards: Any) -> str:
            more = {"masks": self.masks(wildcards)} if step == "evaluate" else {}
            return shlex.join(recipes.words(getattr(self, step)(wildcards), **more))

        return options

    def train(self, wildcards: Any) -> recipes.Train:
        """Return the recipe of a model's weights, wherever they are put."""
        model = dataclasses.replace(self.models[wildcards.model], weights=None)
        return recipes.Train(model, n_train=self.study.dataset.n_train, seed=self.study.seed)

    def index(self, wildcards: Any) -> recipes.Index:
        """Return the recipe of the index, without other steps' concerns."""
        dataset, others = self.study.dataset, ("on_bad_image", "n_train", "obtain", "n_expected")
        own = {name: value for name, value in given(dataset).items() if name not in others}
        return recipes.Index(own, seed=self.study.seed)

    def preflight(self, wildcards: Any) -> recipes.Preflight:
        """Return the recipe of a model's look ahead."""
        later = (*self.attribute(wildcards).own, *self.evaluate(wildcards).own)
        own = tuple(filter(is_own, dict.fromkeys(later)))
        return recipes.Preflight(self.models[wildcards.model], self.study.attribution.baseline, own)

    def prepare(self, wildcards: Any) -> recipes.Prepare:
        """Return the recipe of a shard's images in one geometry."""
        geometry = self.geometries[wildcards.geometry]
        return recipes.Prepare(geometry, wildcards.shard, self.study.dataset.on_bad_image)

    def attribute(self, wildcards: Any) -> recipes.Attribute:
        """Return the recipe of a model's scores."""
        model, study = self.models[wildcards.model], self.study
        return recipes.Attribute(model, study.attribution, study.squares.side, study.seed)

    def mask(self, wildcards: Any) -> recipes.Mask:
        """Return the recipe of masks, the same for all models."""
        selection = self.study.selection
        return recipes.Mask(selection.p, by=selection.by, score=self.study.squares.score)

    def evaluate(self, wildcards: Any) -> recipes.Evaluate:
        """Return the recipe of a model's records."""
        name, masked = wildcards.model, vars(self.study.masking)
        return recipes.Evaluate(self.models[name], name, **masked, seed=self.study.seed)

    def examples(self, wildcards: Any) -> recipes.Examples:
        """Return the recipe of a model's pictures."""
        return recipes.Examples(wildcards.model, n_images=self.study.figures.n_images)

    def compute_options(self, *names: str) -> str:
        """Options that change no result, and so are no params: device, batch size, threads."""
        names = names or ("device", "batch_size", "threads")
        values = {name: getattr(self.study.compute, name) for name in names}
        return shlex.join(recipes.option_words(values))

    def engine_options(self) -> str:
        """Those of attribution alone."""
        return self.compute_options("engine")

    def made(self) -> Iterator[Made]:
        """Yield every file of the study, those that others are made of first."""
        folder, one = Path(self.folder), SimpleNamespace()
        settings = stamp("index") | made_by(self.index(one))
        code = code_of(self.study.dataset.source)
        yield Made(folder / "index.parquet", settings, {"code": code} if code else {})
        settings = settings | stamp("prepare", settings)
        for geometry in self.geometries:
            for shard in self.shards:
                recipe = self.prepare(SimpleNamespace(geometry=geometry, shard=shard))
                path = folder / "images" / geometry / f"{shard}.npy"
                yield Made(path, settings | made_by(recipe))
        for name in self.models:
            yield from self._made_of(name, settings)
        kinds = product((1, 2, 3), ("csv", "md", "html", "tex"))
        tables = ["accuracy.csv", *(f"table{number}.{kind}" for number, kind in kinds)]
        yield from (Made(Path("results/tables", table)) for table in tables)
        yield from (Made(Path(figure)) for figure in self.figures())

    def _made_of(self, name: str, settings: dict[str, Any]) -> Iterator[Made]:
        """Every file of a model; `settings` are those of prepared images, whatever their shard."""
        model, one = self.models[name], SimpleNamespace(model=name)
        images, scores = (
            [Path(x) for x in paths] for paths in (self.images(one), self.scores(one))
        )
        if model.train is not None:
            yield Made(Path(str(model.weights)), stamp("train"))
        looked_at = stamp("preflight", stamp("index"))
        yield Made(Path(self.folder, "models", name, "preflight.json"), looked_at)
        first = SimpleNamespace(geometry=model.geometry.name, shard=self.shards[0])
        settings = settings | made_by(self.prepare(first))
        del settings["shard"]
        evaluate, original = self.evaluate(one), settings | stamp("evaluate", settings)
        settings |= stamp("attribute", settings) | made_by(self.attribute(one))
        for shard, array, path in zip(self.shards, images, scores, strict=True):
            read = {"images": [array]} | self.attribute(one).files()
            yield Made(path, settings | {"shard": shard}, read)
        settings |= stamp("mask", settings) | made_by(self.mask(one))
        masks_of = dict(zip(self.study.selection.p, map(Path, self.masks(one)), strict=True))
        for p, masks in masks_of.items():
            yield Made(masks, settings | {"p": p}, {"scores": scores})
        settings |= stamp("evaluate", settings)
        read = {"images": images}
        for condition, records in zip(self.conditions, self.records(one), strict=True):
            said = evaluate.of_condition(condition)
            if condition.p is None:
                yield Made(Path(records), original | said, read | model.files())
            else:
                applied = {"masks": [masks_of[condition.p]]} | model.files(*evaluate.own)
                yield Made(Path(records), settings | said, read | applied)

    def _placed_models(self) -> dict[str, Model]:
        placed, problems = {}, []
        for name, model in self.study.models.items():
            try:
                placed[name] = self._placed(name, model)
            except InputError as error:
                problems.append(f"  models.{name}: {error}")
        if problems:
            raise InputError("the configuration is not valid:\n" + "\n".join(problems))
        return placed

    def _placed(self, name: str, model: Model) -> Model:
        """The model with its input described and, if it is trained here, its weights' place."""
        if model.train is not None:
            # Apart from the folder of a limited dataset, since a limit trains nothing anew.
            place = f"results/{self.study.dataset.name}/weights/{name}.safetensors"
            model = dataclasses.replace(model, weights=place)
        if ":" not in model.source:
            from igmask.inputs.models import complete  # torchvision knows it; slow to import

            return complete(model)
        return config.with_plain_input(model)


def code_version(stage: str) -> str:
    """What stands in a rule's params for the version of its step's algorithm."""
    return f"{stage} v{STAGES[stage]}"


@cache
def _digest(path: Path) -> str:
    with path.open("rb") as file:  # not by arrays, which takes longer to import than all of this
        return f"{path}: {hashlib.file_digest(file, 'sha256').hexdigest()}"
