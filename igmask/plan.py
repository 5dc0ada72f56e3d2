"""What a study is made of: its files, and the job and recipe of each; Snakefile and tools ask here.

The words of a job carry every setting that its result depends on and no other, in a fixed order, as
one string: so that Snakemake re-runs a job exactly when one of its own settings has changed.
"""

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from types import SimpleNamespace
from typing import Any

from igmask.asked import config, recipes
from igmask.asked.fields import given
from igmask.asked.recipes import STAGES
from igmask.asked.settings import (
    Attribution,
    Model,
    baseline_files,
    is_own,
    own_code,
    percent,
)
from igmask.errors import InputError
from igmask.inputs import contents


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
        self.transfers = list(self._transfers())

    def weights(self, wildcards: SimpleNamespace) -> list[str]:
        """The local weights file of a model, if it has one, so that a new one re-runs its jobs."""
        model = self.models[wildcards.model]
        return [str(model.weights)] if model.weights_kind == "file" else []

    def baseline(self, wildcards: Any) -> list[str]:
        """The baseline, if it is an image file."""
        return baseline_files(self.study.attribution.baseline)

    def images(self, wildcards: SimpleNamespace) -> list[str]:
        """The image arrays of a model: of one shard if the job has one, else of all."""
        shards = [wildcards.shard] if hasattr(wildcards, "shard") else self.shards
        geometry = self.models[wildcards.model].geometry.name
        return [f"{self.folder}/images/{geometry}/{shard}.npy" for shard in shards]

    def references(self, wildcards: SimpleNamespace) -> list[str]:
        """The image arrays of all shards, if attribution begins paths at other images."""
        if self.study.attribution.method != "expected-gradients":
            return []
        return self.images(SimpleNamespace(model=wildcards.model))

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

    def _transfers(self) -> Iterator[tuple[str, str]]:
        """Each network, and each other of the same input whose masks it is shown."""
        if not self.study.masking.transfer:
            return
        for name, other in product(self.models, self.models):
            if name != other and self.models[name].geometry == self.models[other].geometry:
                yield name, other

    def transfer_files(self, other: str) -> list[str]:
        """The names of the records of another network's masks, a condition each."""
        chosen = (one for one in self.conditions if one.mask == "selection")
        return [f"{recipes.shown_masks_of(one, other).name}.parquet" for one in chosen]

    def transferred(self, wildcards: Any) -> list[str]:
        """The records of every network with the masks of every other."""
        return [
            f"{self.folder}/models/{name}/of/{other}/{file}"
            for name, other in self.transfers
            for file in self.transfer_files(other)
        ]

    def others_masks(self, wildcards: SimpleNamespace) -> list[str]:
        """The masks of the other network."""
        return self.masks(SimpleNamespace(model=wildcards.other))

    def curve_files(self, wildcards: SimpleNamespace) -> list[str]:
        """The arrays of every curve of a model, or of all models for the tables."""
        names = [wildcards.model] if hasattr(wildcards, "model") else list(self.models)
        folders = [f"{self.folder}/models/{name}/curves" for name in names]
        return [f"{folder}/{curve.name}.npy" for folder in folders for curve in self.curves]

    def probes(self, wildcards: Any) -> list[str]:
        """What a linear classifier reads from the masks of every model, if it is asked."""
        asked = self.models if self.study.statistics.probe else ()
        return [f"{self.folder}/models/{name}/probe.parquet" for name in asked]

    def record_folders(self, wildcards: Any) -> list[str]:
        """Return the folders of records and curves, whose names would make a command too long."""
        kinds = ["records", *["curves"] * bool(self.curves)]
        folders = [f"{self.folder}/models/{name}/{kind}" for name in self.models for kind in kinds]
        of = [f"{self.folder}/models/{name}/of/{other}" for name, other in self.transfers]
        if self.study.statistics.converged:
            places = [f"{self.folder}/models/{name}/converged" for name in self.models]
            of += [
                f"{place}/{kind}" for place in places for kind in ("agreement.parquet", "records")
            ]
        return folders + self.probes(wildcards) + of

    def example_records(self, wildcards: SimpleNamespace) -> list[str]:
        """Return the records of a model that its pictures show: of controls random squares'."""
        paths = zip(self.conditions, self.records(wildcards), strict=True)
        shown = ("none", "selection", "random")
        return [path for condition, path in paths if condition.mask in shown]

    def table_numbers(self) -> list[int]:
        """Return the numbers of the tables; 4 and 5 are of curves, 8 of other networks' masks, 9 of
        converged ones.
        """
        there = {4: self.curves, 5: self.curves, 8: self.transfers}
        there[9] = self.study.statistics.converged
        return [number for number in range(1, 10) if there.get(number, True)]

    def long_forms(self) -> list[str]:
        """Return the names of the tables' long forms."""
        of_curves = ["curves.csv", "areas.csv"] * bool(self.curves)
        return ["accuracy.csv", *of_curves, "comparisons.csv", "classes.csv"]

    def example_figures(self, kind: str) -> list[str]:
        """The pictures of one model in a format, with a wildcard for its name."""
        modes = self.study.masking.modes
        names = ["attributions", *modes] + (["keep_drop"] if len(modes) == 2 else [])
        return [f"results/figures/{name}-{{model}}.{kind}" for name in names]

    def curve_figures(self, kind: str) -> list[str]:
        """The plots of accuracy in a format."""
        return [f"results/figures/accuracy-{against}.{kind}" for against in ("p", "area")]

    def in_formats(self, figures: Callable[[str], list[str]], *, first: bool) -> list[str]:
        """Figures in the first of the formats that are asked for, or in the others."""
        formats = self.study.figures.formats
        return [path for kind in (formats[:1] if first else formats[1:]) for path in figures(kind)]

    def figures(self) -> list[str]:
        """Every picture of the study."""
        formats = self.study.figures.formats
        curves = [figure for kind in formats for figure in self.curve_figures(kind)]
        examples = [figure for kind in formats for figure in self.example_figures(kind)]
        of_models = product(self.models, examples)
        return curves + [figure.format(model=name) for name, figure in of_models]

    def galleries(self, wildcards: Any) -> list[str]:
        """What the page shows of the images of every model."""
        return [f"{self.folder}/models/{name}/gallery.json" for name in self.models]

    def dataset_contents(self, wildcards: SimpleNamespace) -> str:
        """What stands for the dataset's files."""
        return contents.of_dataset(self.study.dataset)

    def model_contents(self, wildcards: SimpleNamespace) -> str:
        """What stands for a model's weights file and module."""
        return contents.of_model(self.models[wildcards.model])

    def contents(self, recipe_of: Callable[[Any], Any]) -> Callable[[Any], str]:
        """Return what gives `model_contents`, and those of what a job has of the user's own."""

        def of(wildcards: Any) -> str:
            recipe = recipe_of(wildcards)
            own = contents.of_files(own_code(*recipe.own))
            maps = contents.of_maps(getattr(recipe, "attribution", Attribution()).maps)
            return " ".join(filter(None, [self.model_contents(wildcards), own, maps]))

        return of

    def baseline_contents(self, wildcards: SimpleNamespace) -> str:
        """What stands for the study's baseline."""
        return contents.of_baseline(self.study.attribution.baseline)

    def prepare_threads(self, cores: int | None) -> int:
        """Of `igmask prepare`: an equal share of the cores; one if that is open, or of the demo."""
        cores = None if self.study.dataset.source == "demo" else cores  # its images are drawn
        return max(1, (cores or 1) // (len(self.shards) * len(self.geometries)))

    def words(self, step: str) -> Callable[[Any], str]:
        """Return what gives the options of a step's job, from its rule's wildcards.

        From these alone: Snakemake compares no params that are made of input or output.
        """

        def options(wildcards: Any) -> str:
            more = {}
            if step.startswith("attribute"):
                more["references"] = self.references(wildcards)
            if step == "evaluate":
                more = {"masks": self.masks(wildcards), "scores": self.scores(wildcards)}
                more["randomised"] = self.randomised_scores(wildcards)
            if step == "gallery":
                more = {"randomised": self.randomised_scores(wildcards)}
            if step == "converge":
                more = {"masks": self.masks(wildcards)}
            if step == "transfer":
                more = {"masks": self.others_masks(wildcards), "scores": self.scores(wildcards)}
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
        asked, masking, readings = self.study.attribution, self.study.masking, self.study.readings
        fills = _own(masking.fills, readings.fills)
        controls = _own(masking.controls, readings.controls)
        own = _own(self.attribute(wildcards).own, fills, controls, readings.baselines)
        of, maps = self.study.squares, self.attribute(wildcards).attribution.maps
        about = asked.baseline, own, fills, controls, of.side, maps, of.score
        return recipes.Preflight(self.models[wildcards.model], *about)

    def prepare(self, wildcards: Any) -> recipes.Prepare:
        """Return the recipe of a shard's images in one geometry."""
        geometry = self.geometries[wildcards.geometry]
        return recipes.Prepare(geometry, wildcards.shard, self.study.dataset.on_bad_image)

    def attribute(self, wildcards: Any) -> recipes.Attribute:
        """Return the recipe of a model's scores."""
        model, study = self.models[wildcards.model], self.study
        asked = study.attribution
        if asked.maps:
            asked = dataclasses.replace(asked, maps=asked.maps.replace("{model}", wildcards.model))
        return recipes.Attribute(model, asked, study.squares.side, study.seed)

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

    def converged(self, wildcards: Any) -> list[str]:
        """What is made of converged attributions of every model, if they are asked for."""
        asked = self.models if self.study.statistics.converged else ()
        folders = [f"{self.folder}/models/{name}/converged" for name in asked]
        names = ["agreement.parquet", *(f"records/{name}" for name in self.converged_files())]
        return [f"{folder}/{name}" for folder in folders for name in names]

    def converged_files(self) -> list[str]:
        """The names of the records under converged masks, a condition each."""
        of_all = dataclasses.replace(
            self.evaluate(SimpleNamespace(model=next(iter(self.models)))),
            masks_of=recipes.CONVERGED,
        )
        return [f"{one.name}.parquet" for one in of_all.conditions(self.study.selection.p)]

    def converge(self, wildcards: Any) -> recipes.Converge:
        """Return the recipe of a model's converged masks, of some images."""
        study, masked = self.study, self.study.masking
        names = ("modes", "fills")
        return recipes.Converge(
            self.models[wildcards.model],
            study.attribution,
            wildcards.model,
            study.squares.side,
            study.squares.score,
            study.selection.by,
            **{name: getattr(masked, name) for name in names},
            fill_blur_sigma=masked.blur_sigma,
            n_images=study.statistics.converged,
            seed=study.seed,
        )

    def probe(self, wildcards: Any) -> recipes.Probe:
        """Return the recipe of what is read from a model's masks."""
        return recipes.Probe(wildcards.model, self.study.seed)

    def tables(self, wildcards: Any) -> recipes.Tables:
        """Return the recipe of the tables."""
        asked = self.study.statistics
        return recipes.Tables(asked.family, asked.replicates, self.study.seed)

    def evaluate(self, wildcards: Any) -> recipes.Evaluate:
        """Return the recipe of a model's records."""
        name, masked = wildcards.model, dict(vars(self.study.masking))
        del masked["transfer"]
        how: dict[str, Any] = {"points": self.study.curves.points}
        how["score"] = self.study.squares.score
        return recipes.Evaluate(self.models[name], name, **masked, **how, seed=self.study.seed)

    def transfer(self, wildcards: Any) -> recipes.Evaluate:
        """Return the recipe of a model's records with another one's masks."""
        own = self.evaluate(wildcards)
        of = {"masks_of": wildcards.other, "controls": (), "points": 0}
        return dataclasses.replace(own, **of)

    def examples(self, wildcards: Any) -> recipes.Examples:
        """Return the recipe of a model's pictures."""
        asked = self.study.figures
        return recipes.Examples(wildcards.model, asked.n_images, asked.formats)

    def curves_(self, wildcards: Any) -> recipes.Curves:
        """Return the recipe of the plots of accuracy."""
        return recipes.Curves(self.study.figures.formats)

    def gallery(self, wildcards: Any) -> recipes.Gallery:
        """Return the recipe of what the page shows of a model's images."""
        return recipes.Gallery(wildcards.model, self.study.figures.n_gallery)

    def page(self, wildcards: Any) -> recipes.Page:
        """Return the recipe of the page."""
        return recipes.Page(config.in_words(self.study))

    def compute_options(self, *names: str) -> str:
        """Options that change no result, and so are no params: device, batch size, threads."""
        names = names or ("device", "batch_size", "threads")
        values = {name: getattr(self.study.compute, name) for name in names}
        return shlex.join(recipes.option_words(values))

    def engine_options(self) -> str:
        """Those of attribution alone."""
        return self.compute_options("engine")

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


def _own(*several: tuple[str, ...]) -> tuple[str, ...]:
    """What of several settings is a function of the user's own, once each."""
    return tuple(dict.fromkeys(name for names in several for name in names if is_own(name)))


def code_version(*stages: str) -> str:
    """What stands in a rule's params for the versions of its steps' algorithms."""
    return " ".join(f"{stage} v{STAGES[stage]}" for stage in stages)
