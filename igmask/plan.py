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
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from igmask.errors import InputError
from igmask.inputs.files import class_folders, files_below, images_below
from igmask.study import config, recipes
from igmask.study.fields import given
from igmask.study.own import code_of
from igmask.study.recipes import STAGES, made_by, records_of, stamp
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
        n_shards = self.study.compute.shards
        self.shards = [f"{i}-of-{n_shards}" for i in range(1, n_shards + 1)]
        recipe = self.evaluate(SimpleNamespace(model=next(iter(self.models))))
        self.conditions = list(recipe.conditions(self.study.selection.p))
        self.curves = list(recipe.curves())

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

    def drawn_weights(self, wildcards: Any) -> str:
        """The weights of a model that are drawn anew, for the control `randomised`."""
        return f"{self.folder}/models/{wildcards.model}/randomised/weights.safetensors"

    def randomised_scores(self, wildcards: Any) -> list[str]:
        """The scores by a model whose weights are drawn anew, if a control asks for them."""
        if "randomised" not in self.study.masking.controls:
            return []
        folder = f"{self.folder}/models/{wildcards.model}/randomised/scores"
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

    def curve_files(self, wildcards: SimpleNamespace) -> list[str]:
        """The arrays of every curve of a model, or of all models for the tables."""
        names = [wildcards.model] if hasattr(wildcards, "model") else list(self.models)
        folders = [f"{self.folder}/models/{name}/curves" for name in names]
        return [f"{folder}/{curve.name}.npy" for folder in folders for curve in self.curves]

    def record_folders(self, wildcards: Any) -> list[str]:
        """Return the folders of records and curves, whose names would make a command too long."""
        kinds = ["records", *["curves"] * bool(self.curves)]
        return [f"{self.folder}/models/{name}/{kind}" for name in self.models for kind in kinds]

    def example_records(self, wildcards: SimpleNamespace) -> list[str]:
        """Return the records of a model that its pictures show: no control's."""
        paths = zip(self.conditions, self.records(wildcards), strict=True)
        return [path for condition, path in paths if not condition.is_control]

    def table_numbers(self) -> list[int]:
        """Return the numbers of the tables; the last two are of curves."""
        return [1, 2, 3, 4, 5] if self.curves else [1, 2, 3]

    def long_forms(self) -> list[str]:
        """Return the names of the tables' long forms."""
        return ["accuracy.csv", *["curves.csv", "areas.csv"] * bool(self.curves)]

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
            more = {}
            if step == "evaluate":
                more = {"masks": self.masks(wildcards), "scores": self.scores(wildcards)}
                more["randomised"] = self.randomised_scores(wildcards)
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
        asked, masking = self.study.attribution, self.study.masking
        fills, controls = (tuple(filter(is_own, of)) for of in (masking.fills, masking.controls))
        model = self.models[wildcards.model]
        return recipes.Preflight(
            model, asked.baseline, own, fills, controls, self.study.squares.side
        )

    def prepare(self, wildcards: Any) -> recipes.Prepare:
        """Return the recipe of a shard's images in one geometry."""
        geometry = self.geometries[wildcards.geometry]
        return recipes.Prepare(geometry, wildcards.shard, self.study.dataset.on_bad_image)

    def attribute(self, wildcards: Any) -> recipes.Attribute:
        """Return the recipe of a model's scores."""
        model, study = self.models[wildcards.model], self.study
        return recipes.Attribute(model, study.attribution, study.squares.side, study.seed)

    def randomise(self, wildcards: Any) -> recipes.Randomise:
        """Return the recipe of a model's weights, drawn anew."""
        return recipes.Randomise(self.models[wildcards.model], seed=self.study.seed)

    def attribute_randomised(self, wildcards: Any) -> recipes.Attribute:
        """Return the recipe of the scores by those weights: of the logit, since nothing is sure.

        The target is what the command is given as classes: those that the trained network predicts.
        """
        recipe = self.attribute(wildcards)
        drawn: dict[str, Any] = {"weights": self.drawn_weights(wildcards), "prefix": ""}
        model = dataclasses.replace(recipe.model, **drawn, key=None, sha256=None, train=None)
        attribution = dataclasses.replace(recipe.attribution, of="logit", target="label", skip=None)
        return dataclasses.replace(recipe, model=model, attribution=attribution)

    def mask(self, wildcards: Any) -> recipes.Mask:
        """Return the recipe of masks, the same for all models."""
        selection = self.study.selection
        return recipes.Mask(selection.p, by=selection.by, score=self.study.squares.score)

    def evaluate(self, wildcards: Any) -> recipes.Evaluate:
        """Return the recipe of a model's records."""
        name, masked = wildcards.model, vars(self.study.masking)
        how: dict[str, Any] = {"points": self.study.curves.points}
        how["score"] = self.study.squares.score
        return recipes.Evaluate(self.models[name], name, **masked, **how, seed=self.study.seed)

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
        kinds = product(self.table_numbers(), ("csv", "md", "html", "tex"))
        tables = [*self.long_forms(), *(f"table{number}.{kind}" for number, kind in kinds)]
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
        before, evaluate = settings, self.evaluate(one)
        original = settings | stamp("evaluate", settings)
        settings |= stamp("attribute", settings) | made_by(self.attribute(one))
        for shard, array, path in zip(self.shards, images, scores, strict=True):
            read = {"images": [array]} | self.attribute(one).files()
            yield Made(path, settings | {"shard": shard}, read)
        attributed = settings
        yield from self._made_randomised(one, before, images, scores)
        settings = settings | stamp("mask", settings) | made_by(self.mask(one))
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
                own = str(condition.fill), condition.mask
                applied = {"masks": [masks_of[condition.p]]} | model.files(*own)
                if condition.is_control:
                    applied |= self._ranked_by(condition.mask, one, scores)
                yield Made(Path(records), settings | said, read | applied)
        made_of = attributed | stamp("evaluate", attributed)
        for curve, place in zip(self.curves, self.curve_files(one), strict=True):
            files = model.files(curve.fill, curve.mask)
            said = made_of | evaluate.of_curve(curve)
            ranked_by = self._ranked_by(curve.mask, one, scores)
            yield Made(Path(place), said, read | ranked_by | files)

    def _ranked_by(
        self, mask: str, one: SimpleNamespace, scores: list[Path]
    ) -> dict[str, list[Path]]:
        """The scores that a ranking is made of."""
        drawn = list(map(Path, self.randomised_scores(one))) if mask == "randomised" else []
        return {"scores": scores} | ({"randomised": drawn} if drawn else {})

    def _made_randomised(
        self, one: SimpleNamespace, before: dict[str, Any], images: list[Path], scores: list[Path]
    ) -> Iterator[Made]:
        """The files of the control `randomised`; `before` are the settings of prepared images."""
        paths = list(map(Path, self.randomised_scores(one)))
        if not paths:
            return
        yield Made(Path(self.drawn_weights(one)), stamp("randomise"))
        recipe = self.attribute_randomised(one)
        for shard, image, classes, path in zip(self.shards, images, scores, paths, strict=True):
            settings = before | stamp("attribute", before) | made_by(recipe) | {"shard": shard}
            yield Made(path, settings, {"images": [image], "classes": [classes]} | recipe.files())

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
