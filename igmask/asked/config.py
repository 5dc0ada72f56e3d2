"""config.yaml → a valid, complete study, or a message that names every key that is wrong.

Each key's own rules stand in settings.py; here values are held against them, and said in words what
is wrong, and here is what keys ask of each other, and of files.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from itertools import product
from math import isfinite
from pathlib import Path
from textwrap import indent, shorten
from typing import Any

from igmask import quadrature
from igmask.asked.fields import given, misplaced, of_plain
from igmask.asked.recipes import CONVERGED, Condition
from igmask.asked.settings import (
    BASELINES,
    CLASSES,
    LIBRARIES,
    Dataset,
    Model,
    Study,
    is_baseline_file,
    percent,
    rules,
)
from igmask.asked.testing import against, in_vain
from igmask.errors import InputError, no_file, refusing, suggestion


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
    study = of_plain(Study, valid(config, rules(), "the configuration is"))
    study = replace(study, dataset=_named(study.dataset))
    missing = missing_files(study) if with_files else {}
    found = [*_inconsistencies(study), *(f"{key}: {problem}" for key, problem in missing.items())]
    problems = [f"  {problem}" for problem in found]
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

    with refusing(yaml.YAMLError, says=lambda error: f"{name}: {error}"):
        return yaml.load(text, Loader)


def refuse_doubled_keys(file: Path) -> None:
    """Raise InputError if a configuration, which is read elsewhere, has a key twice.

    It may not be there, where jobs share no files and are given what was read.
    """
    if file.is_file():
        of_yaml(file.read_text("utf-8"), str(file))


def missing_files(study: Study) -> dict[str, str]:
    """Return {key: problem} of the files and folders that a study names and that are not there."""
    dataset, baseline = study.dataset, study.attribution.baseline
    files: dict[str, str | None]
    files = {f"dataset.{key}": path for key, path in dataset.tables.items()}
    if is_baseline_file(baseline):
        files["attribution.baseline"] = baseline
    for i, one in enumerate(study.readings.baselines):
        if is_baseline_file(one):
            files[f"readings.baselines[{i}]"] = one
    for name, item in study.models.items():
        if item.weights_kind == "file":
            files[f"models.{name}.weights"] = item.weights
    hints = {"attribution.baseline": f", and baselines by name are {', '.join(BASELINES)}"}
    known = {"dataset.classes": CLASSES}
    problems: dict[str, str] = {
        key: no_file(path, known.get(key, ())) + hints.get(key, "")
        for key, path in files.items()
        if path is not None and not Path(path).is_file()
    }
    if dataset.root and dataset.source in Dataset.FOLDERS and not Path(dataset.root).is_dir():
        problems["dataset.root"] = f"there is no folder {dataset.root!r}"
    if maps := study.attribution.maps:
        folders = dict.fromkeys(maps.replace("{model}", name) for name in study.models)
        if missing := [folder for folder in folders if not Path(folder).is_dir()]:
            problems["attribution.maps"] = f"there is no folder {missing[0]!r}"
    return problems


def in_words(study: Study) -> dict[str, Any]:
    """Return the settings of a study that are other than by default and change what it finds."""
    others = ("compute", "figures", "readings", "models", "seed")
    names = [one.name for one in fields(study) if one.name not in others]
    found: dict[str, Any] = {name: given(getattr(study, name), counting=True) for name in names}
    found["models"] = {name: given(model) for name, model in study.models.items()}
    found["seed"] = study.seed
    return {name: of for name, of in found.items() if of}


def warnings(study: Study) -> list[str]:
    """Return what a study may say but hardly means, a line each."""
    doubts = map(hardly_meant, study.selection.p)
    return [f"selection.p: {doubt}" for doubt in doubts if doubt]


def hardly_meant(p: float) -> str:
    """Return what to say of a percentage that may be a share, 0.5 for 50 %; else nothing."""
    if not 0 < p < 1:
        return ""
    whole = percent(100 * p)
    return f"{percent(p)} means {percent(p)} %; write {whole} if {whole} % is meant"


def dataset(settings: Mapping[str, Any]) -> Dataset:
    """Return a dataset from the keys of `Dataset`, or raise InputError."""
    what = "the dataset's settings are"
    found = of_plain(Dataset, valid(settings, rules("dataset"), what))
    if problems := [f"  {problem}" for problem in _misplaced(found)]:
        raise InputError(f"{what} not valid:\n" + "\n".join(problems))
    return _named(found)


def model(settings: Mapping[str, Any]) -> Model:
    """Return a model from the keys of `Model`, or raise InputError."""
    return of_plain(Model, valid(settings, rules("models", "*"), "the model's settings are"))


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


def _inconsistencies(study: Study) -> Iterator[str]:
    names = [percent(p) for p in study.selection.p]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"selection.p: {name} is there twice"
    for p in study.selection.p:
        if abs(round(p * 100) - p * 100) > 1e-6:
            yield f"selection.p: {p} has more than two decimals"
    if study.dataset.source == "photos" and study.attribution.target == "label":
        yield "attribution.target: photographs have no labels; leave it out, or say predicted"
    yield from (f"dataset.{problem}" for problem in _misplaced(study.dataset))
    fills, controls = study.masking.fills, study.masking.controls
    shown = list(product(fills, ("selection", *controls)))
    if len({Condition("keep", 50, *one).name for one in shown}) < len(shown):
        yield f"masking: two of {', '.join((*fills, *controls))} name the same files"
    yield from _unknown_family(study)
    yield from in_vain(study.statistics.family)
    if study.curves.points == 1:
        yield "curves.points: 1 is no curve; give at least 2, its ends, or 0 for none"
    if "randomised" in study.readings.controls:
        yield "readings.controls: randomised is of the study's own attribution; leave it out"
    asked = study.attribution
    if study.statistics.converged and not asked.is_integrated:
        yield f"statistics.converged: the method {asked.method} has no steps to converge"
    if study.masking.transfer and CONVERGED in study.models:
        yield f"models.{CONVERGED}: its masks would be taken for converged ones; name it otherwise"
    if (asked.method == "maps") != (asked.maps is not None):
        yield "attribution.maps: the folder of method maps; give both or neither"
    if asked.method in ("maps", "random") and "randomised" in controls:
        yield f"masking.controls: randomised has no meaning for method {asked.method}"
    try:
        if asked.is_integrated:
            quadrature.check_asked(asked.rule, asked.n_steps, of=asked.of, skip=asked.skip)
    except InputError as error:
        yield f"attribution: {error}"
    for name, item in study.models.items():
        if item.library == "torchvision" and not item.weights and not item.train:
            random = f"{item.source} would be random (weights: none says that it is meant)"
            yield f"models.{name}.weights: missing; {random}"
        if item.train and study.dataset.source != "demo":
            yield f"models.{name}.train: only the demo dataset has training images"
        of_file = [key for key in ("sha256", "key", "prefix") if getattr(item, key)]
        if of_file and item.weights_kind not in ("file", "url"):
            yield f"models.{name}.{of_file[0]}: only a weights file or URL can have it"
        if item.train and item.weights:
            yield f"models.{name}: give either train or weights, not both"
        describes = item.weights_kind == "torchvision" or item.library in LIBRARIES
        if item.size is None and not describes:
            known = "torchvision's weights, timm/… and hf/…"
            yield f"models.{name}.size: missing; {known} alone know it"
        if item.size and item.resize and item.resize < item.size:
            yield f"models.{name}.resize: {item.resize} is less than size {item.size}"
        yield from (f"models.{name}.{problem}" for problem in of_bytes(item))


def _unknown_family(study: Study) -> Iterator[str]:
    """Of comparisons, the conditions that there are not."""
    shown = product(("selection", *study.masking.controls), study.masking.modes, study.selection.p)
    names = [
        Condition(mode, p, fill, mask).name
        for mask, mode, p in shown
        for fill in study.masking.fills
    ]
    for pair in study.statistics.family:
        for name in against(pair):
            if name not in (known := ["original", *names]):
                yield f"statistics.family: there is no condition {name!r}{suggestion(name, known)}"


def _misplaced(dataset: Dataset) -> Iterator[str]:
    for key, sources in misplaced(dataset).items():
        yield f"{key}: not for source {dataset.source}; it belongs to {', '.join(sources)}"


def _named(dataset: Dataset) -> Dataset:
    name = dataset.name or dataset.class_ or dataset.source.replace(":", "-")
    return replace(dataset, name=name)


def valid(given: Mapping[str, Any], rules: dict[str, Any], what: str) -> dict[str, Any]:
    """Return the settings as JSON has them.

    rules:  JSON schema, as `settings.rules` gives it
    what:   names the settings in the message
    raises  InputError with a line for each wrong key
    """
    plain = json.loads(json.dumps(given, default=str))  # as JSON: text keys, lists for tuples
    errors = _validator()(rules).iter_errors(plain)
    lines = [line for error in errors for line in _explain(error)]
    if lines:
        raise InputError(f"{what} not valid:\n" + "\n".join(sorted(f"  {x}" for x in lines)))
    return plain


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


def _explain(error: Any) -> list[str]:
    """What is wrong, what came and what is allowed, a line a key; of jsonschema's errors."""
    where = ".".join(str(key) for key in error.absolute_path)
    value, rules = error.instance, error.schema
    if error.validator == "additionalProperties":
        known = list(rules["properties"])
        return [
            f"{where + '.' if where else ''}{key}: unknown key"
            + (suggestion(key, known) or f"; known are {', '.join(known)}")
            for key in sorted(set(value) - set(known), key=str)
        ]
    if error.validator == "required":
        missing = error.message.split("'")[1]
        return [f"{where + '.' if where else ''}{missing}: missing"]
    if "propertyNames" in error.absolute_schema_path:
        return [f"{where}: the name {value!r} may only have {rules['allowed']}"]
    where = where or "configuration"
    names = rules.get("enum") or rules.get("examples")
    if names and error.validator in ("enum", "pattern"):
        hint = suggestion(value, [str(name) for name in names])
        return [f"{where}: {_shown(value)} is not {_allowed(rules)}{hint}"]
    return [f"{where}: {_problem(error)}; it must be {_allowed(rules)}{_remedy(value, rules)}"]


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
    if isinstance(value, float):
        return "a number with decimals" if isfinite(value) else "not finite"
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
