"""What the Snakefile asks for: the files of a study, and the options of each job.

Options carry every setting a job depends on and no other, in a fixed order, as one string: so that
Snakemake re-runs a job exactly when one of its own settings has changed.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from igmask.errors import InputError
from igmask.inputs.files import class_folders, images_below
from igmask.inputs.own import code
from igmask.inputs.sources import source_of
from igmask.study import config
from igmask.study.config import STAGES, Condition, Model, is_own, is_random, percent


class Workflow:
    """The jobs of one configuration; methods named `…_options` take a rule's wildcards."""

    def __init__(self, settings: Mapping[str, Any], *, with_files: bool = True) -> None:
        self.study = config.parse(settings, with_files=with_files)
        dataset = self.study.dataset
        self.data = dataset.name + (f"-first{dataset.limit}" if dataset.limit else "")
        self.folder = f"results/{self.data}"
        self.models = self._placed_models()
        self.shards = [
            f"{i}-of-{self.study.compute['shards']}"
            for i in range(1, self.study.compute["shards"] + 1)
        ]
        self.conditions = [Condition("original")] + [
            Condition(mode, p, fill)
            for mode in self.study.masking["modes"]
            for p in self.study.selection["p"]
            for fill in self.study.masking["fills"]
        ]

    # -- files ---------------------------------------------------------------------------------

    def weights(self, wildcards: SimpleNamespace) -> list[str]:
        """The local weights file of a model, if it has one, so that a new one re-runs its jobs."""
        model = self.models[wildcards.model]
        return [str(model.weights)] if model.weights_kind == "file" else []

    def images(self, wildcards: SimpleNamespace) -> list[str]:
        """The image arrays of a model: of one shard if the job has one, else of all."""
        shards = [wildcards.shard] if hasattr(wildcards, "shard") else self.shards
        geometry = self.models[wildcards.model].geometry.name
        return [f"{self.folder}/images/{geometry}/{shard}.npy" for shard in shards]

    def scores(self, wildcards: SimpleNamespace) -> list[str]:
        """The score arrays of a model, one a shard."""
        folder = f"{self.folder}/models/{wildcards.model}/scores"
        return [f"{folder}/{shard}.npy" for shard in self.shards]

    def masks_folder(self, wildcards: SimpleNamespace) -> str:
        """Where the masks of a model are."""
        return f"{self.folder}/models/{wildcards.model}/masks"

    def mask_files(self) -> list[str]:
        """The names of the masks of every p, without their ending."""
        return [percent(p) for p in self.study.selection["p"]]

    def masks(self, wildcards: SimpleNamespace) -> list[str]:
        """The masks of a model, one file a p."""
        return [f"{self.masks_folder(wildcards)}/{name}.npy" for name in self.mask_files()]

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
        modes = self.study.masking["modes"]
        kinds = ["attributions", *modes] + (["keep_drop"] if len(modes) == 2 else [])
        return [f"results/figures/{kind}-{{model}}.png" for kind in kinds]

    def figures(self) -> list[str]:
        """Every picture of the study."""
        curves = [f"results/figures/accuracy-{against}.png" for against in ("p", "area")]
        return curves + [
            figure.format(model=name) for name in self.models for figure in self.example_figures()
        ]

    # -- contents: what times of change alone would not tell -----------------------------------

    def dataset_contents(self, wildcards: SimpleNamespace) -> str:
        """Of `labels`, `classes`, a function's code, and the names of images and class folders."""
        dataset = self.study.dataset
        files = [Path(path) for path in (dataset.labels, dataset.classes) if path]
        digests = [_digest(path) for path in files + code(dataset.source)]
        if dataset.root and source_of(dataset.source).below_root:
            names = sorted(images_below(dataset.root)) + class_folders(dataset.root)
            digests.append(hashlib.sha256("\n".join(names).encode("utf-8", "replace")).hexdigest())
        return " ".join(digests)

    def model_contents(self, wildcards: SimpleNamespace) -> str:
        """Of a model's weights file, and of its module or package in the working directory."""
        model = self.models[wildcards.model]
        files = code(model.source)
        if model.weights_kind == "file" and model.train is None:
            files.append(Path(str(model.weights)))
        return " ".join(_digest(path) for path in files)

    def baseline_contents(self, wildcards: SimpleNamespace) -> str:
        """Of the baseline, if it is an image file or code of one's own."""
        baseline = self.study.attribution["baseline"]
        if baseline in config.BASELINES:
            return ""
        return " ".join(map(_digest, code(baseline) if is_own(baseline) else [Path(baseline)]))

    # -- cores ---------------------------------------------------------------------------------

    def prepare_threads(self, cores: int | None) -> int:
        """Of `igmask prepare`: an equal share of the cores, or one where their number is open."""
        geometries = {model.geometry.name for model in self.models.values()}
        return max(1, (cores or 1) // (len(self.shards) * len(geometries)))

    # -- options -------------------------------------------------------------------------------

    def train_options(self, wildcards: SimpleNamespace) -> str:
        """Of `igmask train`."""
        model = dataclasses.replace(self.models[wildcards.model], weights=None)
        return _options(model=_of(model), n_train=self.study.dataset.n_train, seed=self.study.seed)

    def index_settings(self) -> dict[str, Any]:
        """The dataset's settings that differ from their defaults, without other steps' concerns."""
        defaults = config.dataset({"source": "demo"})
        others = ("on_bad_image", "n_train", "obtain", "n_expected")
        dataset = dataclasses.replace(
            self.study.dataset, **{key: getattr(defaults, key) for key in others}
        )
        return config.given_settings(dataset)

    def index_options(self, wildcards: SimpleNamespace) -> str:
        """Of `igmask index`."""
        seed = self.study.seed if source_of(self.study.dataset.source).is_drawn else None
        return _options(dataset=_json(self.index_settings()), seed=seed)

    def preflight_options(self, wildcards: SimpleNamespace) -> str:
        """Of `igmask preflight`."""
        model = self.models[wildcards.model]
        return _options(model=_of(model), baseline=self.study.attribution["baseline"])

    def prepare_options(self, wildcards: SimpleNamespace) -> str:
        """Of `igmask prepare`."""
        geometry = next(
            model.geometry
            for model in self.models.values()
            if model.geometry.name == wildcards.geometry
        )
        return _options(
            **vars(geometry),
            shard=wildcards.shard,
            on_bad_image=self.study.dataset.on_bad_image,
        )

    def attribution_settings(self) -> dict[str, Any]:
        """The settings of attributions, without what only another baseline or rule would need."""
        attribution, kind = self.study.attribution, self.study.attribution["baseline"]
        of_other = {"blur_sigma": kind != "blur", "n_baselines": kind != "uniform"}
        if is_own(kind):  # nobody knows what it needs
            of_other = {}
        fixed = attribution["n_steps"] != "auto"
        of_other |= dict.fromkeys(("tolerance", "agreement", "most_steps"), fixed)
        return {key: value for key, value in attribution.items() if not of_other.get(key)}

    def attribute_options(self, wildcards: SimpleNamespace) -> str:
        """Of `igmask attribute`."""
        return _options(
            model=_of(self.models[wildcards.model]),
            **self.attribution_settings(),
            side=self.study.squares["side"],
            seed=self.study.seed if is_random(self.study.attribution["baseline"]) else None,
        )

    def mask_options(self, wildcards: SimpleNamespace) -> str:
        """Of `igmask mask`."""
        return _options(
            p=self.mask_files(),
            by=self.study.selection["by"],
            score=self.study.squares["score"],
        )

    def evaluate_options(self, wildcards: SimpleNamespace) -> str:
        """Of `igmask evaluate`, its masks included, of which it takes several."""
        masking = self.study.masking
        return _options(
            masks=self.masks(wildcards),
            model=_of(self.models[wildcards.model]),
            name=wildcards.model,
            mode=masking["modes"],
            fill=masking["fills"],
            control=masking["controls"],
            seed=self.study.seed if masking["controls"] else None,
        )

    def compute_options(self) -> str:
        """Options that change no result, and so are no params: device, batch size, threads.

        The engine, which is none of evaluation's, stands in `engine_options`.
        """
        compute = self.study.compute
        return _options(**{key: compute[key] for key in ("device", "batch_size", "threads")})

    def engine_options(self) -> str:
        """Of `igmask attribute`, no params either."""
        return _options(engine=self.study.compute["engine"])

    def example_options(self, wildcards: SimpleNamespace) -> str:
        """Of `igmask examples`."""
        return _options(model_name=wildcards.model, **self.study.figures)

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


def _options(**values: Any) -> str:
    words = []
    for name, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                words += [f"--{name.replace('_', '-')}", str(item)]
    return shlex.join(words)


def _of(model: Model) -> str:
    return _json(config.given_settings(model))


def _json(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, ensure_ascii=False)


@cache
def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"{path}: {hashlib.file_digest(file, 'sha256').hexdigest()}"
