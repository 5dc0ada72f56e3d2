"""The study's choices: config.yaml → validated, frozen dataclasses.

`config.schema.json` says each key once: its type, default and meaning; the command line takes its
options from there too. `parse` checks a configuration against it, names every key that is wrong,
and fills in the defaults. Below this module settings are plain arguments.
"""

import contextlib
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from math import isfinite
from pathlib import Path
from textwrap import indent, shorten
from typing import Any, NamedTuple

from igmask import quadrature
from igmask.errors import InputError

# The algorithm of each step; raise a number when a step's results change.
STAGES = {
    "train": 2,
    "index": 2,
    "preflight": 2,
    "prepare": 3,
    "attribute": 4,
    "mask": 3,
    "evaluate": 5,
}

KEPT = ".kept"  # a folder beside the records, in which `evaluate` keeps those it has finished

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
BASELINES = ("black", "white", "mean", "blur", "uniform")

# Sources of images, and the keys that each needs; one's own, a `module:callable`, needs none.
SOURCES: dict[str, tuple[str, ...]] = {
    "demo": (),
    "folder": ("root",),
    "csv": ("root", "labels"),
    "torchvision": ("root", "class"),
}


@dataclass(frozen=True)
class Dataset:
    """Where images and labels come from; fields as the schema's keys."""

    source: str
    name: str
    root: str | None
    labels: str | None
    columns: tuple[str, str]
    classes: str | None
    scale: float | None
    class_: str | None
    arguments: dict[str, Any]
    download: bool
    obtain: str | None
    n_expected: int | None
    n_images: int
    n_train: int
    limit: int | None
    on_bad_image: str


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square of `size` pixels: resize the shorter side, crop the centre."""

    size: int
    resize: int | None
    interpolation: str

    @property
    def name(self) -> str:
        """A name for folders: 224-resize256-bilinear, or 32 where nothing is resized."""
        resized = f"-resize{self.resize}-{self.interpolation}" if self.resize else ""
        return f"{self.size}{resized}"


@dataclass(frozen=True)
class Train:
    """How a demo model is trained; fields as the schema's keys."""

    epochs: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Model:
    """A network, its weights and its input; fields as the schema's keys."""

    source: str
    arguments: dict[str, Any]
    weights: str | None
    sha256: str | None
    key: str | None
    prefix: str
    output: str | int | None
    size: int | None
    resize: int | None
    interpolation: str | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    train: Train | None

    @property
    def geometry(self) -> Geometry:
        """How images are cut for it; raises InputError if that is not known."""
        if self.size is None:
            raise InputError(f"{self.source}: the size of its input is not known; set `size`")
        return Geometry(self.size, self.resize, self.interpolation or "bilinear")

    @property
    def weights_kind(self) -> str:
        """`unsaid`, `none`, `torchvision` (a name such as IMAGENET1K_V1), `url` or `file`.

        With `none` random weights are meant; with `unsaid` a callable may load weights itself.
        """
        if self.weights in (None, "none"):
            return self.weights or "unsaid"
        if ":" not in self.source and re.fullmatch(r"[A-Z][A-Z0-9_]*", self.weights):
            return "torchvision"
        return "url" if "://" in self.weights else "file"


class Condition(NamedTuple):
    """How images are shown to a network: as they are, or masked."""

    mode: str
    p: float | None = None
    fill: str | None = None

    @property
    def name(self) -> str:
        """A name for files: original, keep-50-black."""
        return self.mode if self.p is None else f"{self.mode}-{percent(self.p)}-{self.fill}"


@dataclass(frozen=True)
class Study:
    """A whole configuration, valid and complete; groups without a dataclass stay dictionaries."""

    dataset: Dataset
    models: dict[str, Model]
    attribution: dict[str, Any]
    squares: dict[str, Any]
    selection: dict[str, Any]
    masking: dict[str, Any]
    figures: dict[str, Any]
    compute: dict[str, Any]
    seed: int


@cache
def schema() -> dict[str, Any]:
    """Return the JSON schema of config.yaml."""
    return json.loads(Path(__file__).with_name("config.schema.json").read_text("utf-8"))


def default_file() -> Path:
    """Return config.yaml of the working directory, else the demo's beside the Snakefile."""
    here = Path("config.yaml")
    shipped = Path(__file__).resolve().parents[2] / here
    if not here.is_file() and not shipped.is_file():
        raise InputError(f"there is no {here} in the working directory; give --configfile")
    return here if here.is_file() else shipped


def parse(config: Mapping[str, Any], *, with_files: bool = True) -> Study:
    """Return the study that a configuration describes.

    with_files: whether a file that is missing is an error, too
    raises      InputError that names every key or value that is wrong
    """
    full = _valid(config, schema(), "the configuration is")
    study = Study(
        **full
        | {
            "dataset": dataset(full["dataset"]),
            "models": {name: model(given) for name, given in full["models"].items()},
        }
    )
    problems = _inconsistencies(study)
    missing = missing_files(study) if with_files else {}
    problems += [f"  {key}: {problem}" for key, problem in missing.items()]
    if study.dataset.obtain and any(key.startswith("dataset.") for key in missing):
        problems.append(indent(study.dataset.obtain.strip(), "    "))
    if problems:
        raise InputError("the configuration is not valid:\n" + "\n".join(problems))
    return study


def of_yaml(text: str, name: str) -> Any:
    """Return what a YAML text says; raise InputError, naming it, for bad YAML or a key there twice.

    PyYAML lets the last of two keys win, without a word (YAML 1.2.2, 3.2.1.1: keys are unique).
    """
    import yaml  # the workflow's jobs are given JSON

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:  # as written: what is merged in (<<) may be said again
                if (key.tag, str(key.value)) in seen:
                    line = key.start_mark.line + 1
                    raise InputError(f"{name}, line {line}: {key.value} is there twice")
                seen.add((key.tag, str(key.value)))
            return super().construct_mapping(node, deep=deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise InputError(f"{name}: {error}") from None


def refuse_doubled_keys(file: Path) -> None:
    """Raise InputError if a configuration, which is read elsewhere, has a key twice.

    It may not be there, where jobs share no files and are given what was read.
    """
    if file.is_file():
        of_yaml(file.read_text("utf-8"), str(file))


def missing_files(study: Study) -> dict[str, str]:
    """Return {key: problem} of the files and folders that a study names and that are not there."""
    files = {
        "dataset.labels": study.dataset.labels,
        "dataset.classes": study.dataset.classes,
    }
    baseline = study.attribution["baseline"]
    if baseline not in BASELINES and not is_own(baseline):
        files["attribution.baseline"] = baseline
    for name, item in study.models.items():
        if item.weights_kind == "file":
            files[f"models.{name}.weights"] = item.weights
    problems = {
        key: f"there is no file {path!r}{_hint(key)}"
        for key, path in files.items()
        if path is not None and not Path(path).is_file()
    }
    root, source = study.dataset.root, study.dataset.source
    elsewhere = source == "torchvision" or is_own(source)  # made, or whatever the function takes
    if root and not elsewhere and not Path(root).is_dir():
        problems["dataset.root"] = f"there is no folder {root!r}"
    return problems


def warnings(study: Study) -> list[str]:
    """Return what a study may say but hardly means, a line each."""
    return [
        f"selection.p: {percent(p)} means {percent(p)} %; write {percent(100 * p)} if "
        f"{percent(100 * p)} % is meant"
        for p in study.selection["p"]
        if p < 1
    ]


def dataset(settings: Mapping[str, Any]) -> Dataset:
    """Return a dataset from the keys of the schema's `dataset`, or raise InputError."""
    full = _valid(settings, schema()["properties"]["dataset"], "the dataset's settings are")
    full["class_"] = full.pop("class")
    full["name"] = full["name"] or full["class_"] or full["source"].replace(":", "-")
    full["columns"] = tuple(full["columns"])
    return Dataset(**full)


def model(settings: Mapping[str, Any]) -> Model:
    """Return a model from the keys of the schema's `models`, or raise InputError."""
    rules = schema()["properties"]["models"]["additionalProperties"]
    full = _valid(settings, rules, "the model's settings are")
    for name in ("mean", "std"):
        full[name] = tuple(full[name]) if full[name] else None
    full["train"] = Train(**full["train"]) if full["train"] is not None else None
    return Model(**full)


def settings(item: Dataset | Model) -> dict[str, Any]:
    """Return the settings from which `dataset` or `model` makes the same item again."""
    values = {field.name.rstrip("_"): getattr(item, field.name) for field in fields(item)}
    if values.get("train"):
        values["train"] = vars(values["train"])
    return values


def given_settings(item: Dataset | Model) -> dict[str, Any]:
    """Return those settings of an item that differ from their defaults."""
    properties = schema()["properties"]
    is_dataset = isinstance(item, Dataset)
    rules = properties["dataset"] if is_dataset else properties["models"]["additionalProperties"]
    defaults = {key: value.get("default") for key, value in rules["properties"].items()}
    plain = json.loads(json.dumps(settings(item)))
    return {key: value for key, value in plain.items() if value != defaults[key]}


def stamp(step: str, *before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what files say of their making: the step, and the version of each step so far.

    before: the settings of what they are made of
    """
    versions: dict[str, int] = {}
    for made_by in before:
        versions |= made_by.get("versions", {})
    return {"step": step, "versions": versions | {step: STAGES[step]}}


def with_plain_input(model: Model) -> Model:
    """Return the model with what is not said of its input filled in: bilinear, not normalised."""
    return replace(
        model,
        interpolation=model.interpolation or "bilinear",
        mean=model.mean or (0.0, 0.0, 0.0),
        std=model.std or (1.0, 1.0, 1.0),
    )


def of_bytes(model: Model) -> list[str]:
    """Return what is wrong with a mean and std that are of images in [0, 255], a line a key."""
    with_std = model.std in (None, (1, 1, 1))  # then they have x − mean, with x in [0, 255]
    advice = {"mean": ", and std, which is 1, too" if with_std else "", "std": ""}
    return [
        f"{key}: {list(values)} is of images in [0, 255]; images here are in [0, 1], so divide by "
        f"255{advice[key]}"
        for key, values in (("mean", model.mean), ("std", model.std))
        if values and max(values) > 1
    ]


def is_own(name: str) -> bool:
    """Return whether it is `module:callable`, a function of the user's own."""
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*", name) is not None


def is_random(baseline: str) -> bool:
    """Return whether a baseline depends on the study's seed, as one's own may."""
    return baseline == "uniform" or is_own(baseline)


def percent(p: float) -> str:
    """Return p as file names and tables have it: 50, 12.5."""
    return f"{p:g}"


def _is_integer(_checker: Any, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(_checker: Any, value: Any) -> bool:
    return isfinite(value) if isinstance(value, float) else _is_integer(_checker, value)


@cache
def _validator() -> Any:
    """The class that checks settings against rules."""
    import jsonschema  # takes as long as NumPy, and a third of the jobs read no settings

    draft = jsonschema.Draft202012Validator
    # JSON schema takes 50.0 for an integer, and .nan and .inf for numbers.
    strict = {"integer": _is_integer, "number": _is_number}
    checker = draft.TYPE_CHECKER.redefine_many(strict)
    return jsonschema.validators.extend(draft, type_checker=checker)


def _valid(given: Mapping[str, Any], rules: dict[str, Any], what: str) -> dict[str, Any]:
    """The settings with defaults filled in, or an InputError with a line for each wrong key."""
    plain = json.loads(json.dumps(given, default=str))  # as JSON: text keys, lists for tuples
    errors = _validator()(rules).iter_errors(plain)
    lines = [line for error in errors for line in _explain(error)]
    if lines:
        raise InputError(f"{what} not valid:\n" + "\n".join(sorted(f"  {x}" for x in lines)))
    return _with_defaults(plain, rules)


def _explain(error: Any) -> list[str]:
    """What is wrong, what came and what is allowed, a line a key; of jsonschema's errors."""
    where = ".".join(str(key) for key in error.absolute_path)
    value, rules = error.instance, error.schema
    if error.validator == "additionalProperties":
        known = list(rules["properties"])
        return [
            f"{where + '.' if where else ''}{key}: unknown key"
            + (_suggestion(key, known) or f"; known are {', '.join(known)}")
            for key in sorted(set(value) - set(known), key=str)
        ]
    if error.validator == "required":
        missing = error.message.split("'")[1]
        return [f"{where + '.' if where else ''}{missing}: missing"]
    if "propertyNames" in error.absolute_schema_path:
        return [f"{where}: the name {value!r} may only have {rules['allowed']}"]
    hint = _suggestion(value, rules.get("examples", []))
    where = where or "configuration"
    if error.validator == "enum":
        hint = _suggestion(value, [str(choice) for choice in rules["enum"]])
        return [f"{where}: {_shown(value)} is not {_allowed(rules)}{hint}"]
    return [
        f"{where}: {_problem(error)}; it must be {_allowed(rules)}{_remedy(value, rules)}{hint}"
    ]


def _problem(error: Any) -> str:
    value, shown = error.instance, _shown(error.instance)
    match error.validator:
        case "type":
            return "nothing is given" if value is None else f"{shown} is {_kind(value)}"
        case "minimum" | "exclusiveMinimum":
            return f"{shown} is too small"
        case "maximum":
            return f"{shown} is too large"
        case "uniqueItems":
            return f"{_shown(next(x for x in value if value.count(x) > 1))} is there twice"
        case "minItems" | "maxItems" | "minProperties":
            return f"{shown} has {len(value)}" if value else "it is empty"
    return f"{shown} does not fit"


def _kind(value: Any) -> str:
    if isinstance(value, float) and not isfinite(value):
        return "not finite"
    if isinstance(value, float):
        return "a number with decimals"
    kinds = {bool: "a truth value", str: "text", list: "a list", dict: "keys and values"}
    return kinds.get(type(value), "a number")


def _shown(value: Any) -> str:
    """A value as in the file, cut short."""
    words = {True: "true", False: "false", None: "nothing"}
    is_word = value is None or isinstance(value, bool)
    return words[value] if is_word else shorten(repr(value), 60, placeholder=" …")


def _allowed(rules: dict[str, Any]) -> str:
    """What a schema takes, in words: a whole number of at least 1 or auto."""
    if "enum" in rules:
        return f"one of {', '.join(_shown(c) if c is None else c for c in rules['enum'])}"
    kinds = rules["type"] if isinstance(rules["type"], list) else [rules["type"]]
    return ", or ".join(_allowed_of(kind, rules) for kind in kinds)


def _allowed_of(kind: str, rules: dict[str, Any]) -> str:
    if kind in ("number", "integer"):
        limits = {"minimum": "of at least", "exclusiveMinimum": "above", "maximum": "at most"}
        within = " and ".join(f"{limits[key]} {rules[key]}" for key in limits if key in rules)
        return f"{'a number' if kind == 'number' else 'a whole number'} {within}".strip()
    if kind == "array":
        least, most = rules.get("minItems"), rules.get("maxItems")
        number = f" of {most}" if most else f" of at least {least}" if least else ""
        once = ", none twice" if rules.get("uniqueItems") else ""
        return f"a list{number} (each {_allowed(rules['items'])}{once})"
    if kind == "object":
        return "keys and values" + (", at least one" if rules.get("minProperties") else "")
    words = {"string": rules.get("allowed", "text"), "boolean": "true or false", "null": "nothing"}
    return words[kind]


def _remedy(value: Any, rules: dict[str, Any]) -> str:
    """What to write for a value that is what it must be but for its form: '50%', 50 for [50]."""
    if value is None and "default" in rules:
        return "; or leave it out"
    forms = [value]
    if isinstance(value, str) and rules.get("items", rules).get("maximum") == 100:
        value = value.rstrip(" %")
    if isinstance(value, str | float):  # YAML takes 1e-3 for text
        with contextlib.suppress(ValueError):
            number = float(value)
            forms.append(int(number) if number.is_integer() else number)
    for form in [*forms, *([form] for form in forms)]:
        if _validator()(rules).is_valid(form):
            return f"; write {form}"
    return ""


def _suggestion(key: Any, known: list[str]) -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _with_defaults(given: Any, rules: dict[str, Any]) -> Any:
    """Return a copy of the settings with the schema's defaults in place of what is not given."""
    if not isinstance(given, Mapping):
        return given
    known = rules.get("properties", {})
    full = {key: value.get("default") for key, value in known.items() if "default" in value}
    full |= given
    other = rules.get("additionalProperties")
    return {
        key: _with_defaults(value, known.get(key, other if isinstance(other, dict) else {}))
        for key, value in full.items()
    }


def _inconsistencies(study: Study) -> list[str]:
    problems = []
    names = [percent(p) for p in study.selection["p"]]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"  selection.p: {name} is there twice" for name in twice]
    problems += [
        f"  selection.p: {p} has more than two decimals"
        for p in study.selection["p"]
        if abs(round(p * 100) - p * 100) > 1e-6
    ]
    try:
        if study.attribution["n_steps"] == "auto":
            quadrature.between(study.attribution["rule"], 25)
        else:
            quadrature.rule(study.attribution["rule"], study.attribution["n_steps"])
    except ValueError as error:
        problems.append(f"  attribution: {error}")
    for name, item in study.models.items():
        if ":" not in item.source and not item.weights and not item.train:
            problems.append(
                f"  models.{name}.weights: missing; {item.source} would be random "
                "(weights: none says that it is meant)"
            )
        if item.train and study.dataset.source != "demo":
            problems.append(f"  models.{name}.train: only the demo dataset has training images")
        of_file = [key for key in ("sha256", "key", "prefix") if getattr(item, key)]
        if of_file and item.weights_kind not in ("file", "url"):
            problems.append(f"  models.{name}.{of_file[0]}: only a weights file or URL can have it")
        if item.train and item.weights:
            problems.append(f"  models.{name}: give either train or weights, not both")
        if item.size is None and item.weights_kind != "torchvision":
            problems.append(f"  models.{name}.size: missing; torchvision's weights alone know it")
        if item.size and item.resize and item.resize < item.size:
            problems.append(f"  models.{name}.resize: {item.resize} is less than size {item.size}")
        problems += [f"  models.{name}.{problem}" for problem in of_bytes(item)]
    return problems


def _hint(key: str) -> str:
    return f", and baselines by name are {', '.join(BASELINES)}" if "baseline" in key else ""
