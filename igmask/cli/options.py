"""Options of the commands: defaults, choices and help are those of the settings of their names."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click

from igmask.asked import config, settings
from igmask.asked.settings import Attribution, Model
from igmask.errors import InputError
from igmask.progress import say

File = click.Path(path_type=Path)
FOLDER = "The folder to write to."


class Number(click.FloatRange):
    """A number above and up to some; neither NaN, which click takes to be in any, nor infinite.

    A percentage, up to 100, has at most two decimals, as selections accept it.
    """

    def __init__(self, above: float, most: float | None) -> None:
        super().__init__(above, most, min_open=True)
        self.above = above

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the number, or fail as click does."""
        is_percentage = self.max == 100
        try:
            number = float(value)
        except (TypeError, ValueError):
            hint = "; 50 is 50 %" if is_percentage else ""
            self.fail(f"{value!r} is not a number{hint}.", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not finite.", param, ctx)
        if number <= self.above or (self.max is not None and number > self.max):
            to = "" if self.max is None else f" and at most {self.max:g}"
            self.fail(f"{value} is not above {self.above:g}{to}.", param, ctx)
        if is_percentage and number != round(number, 2):
            self.fail(f"{value} has more than two decimals.", param, ctx)
        if is_percentage and (doubt := config.hardly_meant(number)):
            say(f"warning: {doubt}")
        return number


class IntegerOrAuto(click.IntRange):
    """An integer, or `auto`."""

    name = "integer or auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number or the word, or fail as click does."""
        return value if value == "auto" else super().convert(value, param, ctx)


class NameOrOwn(click.Choice):
    """One of some names, or a function of one's own, `module:callable`."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the name, or fail as click does."""
        return value if settings.is_own(value) else super().convert(value, param, ctx)

    def get_metavar(self, *arguments: Any, **keywords: Any) -> str:
        """Return what stands for it in the help."""
        return f"[{'|'.join(map(str, self.choices))}|module:callable]"


def setting(*path: str, **changes: Any) -> Callable:
    """Return the option of a key of the configuration, such as ("attribution", "n_steps").

    Of a list it takes a value, or several times one. A key that may be nothing may be left out.

    changes: to what click.option is given; `names`, if it is called otherwise; `multiple` false,
             for one of the values that a list may have
    """
    rules = settings.rules(*path)
    several = changes.pop("multiple", "items" in rules)
    text, one = rules["description"], rules.get("items", rules)
    attributes: dict[str, Any] = {
        "type": _kind(one),
        "multiple": several,
        "default": rules.get("default"),
        "help": f"{text[:1].upper()}{text[1:]}{'; may be given several times' * several}.",
    }
    names = changes.pop("names", [f"--{path[-1].replace('_', '-')}"])
    return click.option(*names, **attributes | changes)


def _kind(rules: dict[str, Any]) -> Any:
    """What click checks a value by."""
    kind: Any = rules.get("type")
    if "enum" in rules:
        return click.Choice(rules["enum"])
    if "examples" in rules:
        return NameOrOwn(rules["examples"])
    if kind == ["integer", "string"]:
        return IntegerOrAuto(rules["minimum"])
    if isinstance(kind, list):
        kind = kind[0]  # or null
    return {
        "integer": click.IntRange(rules.get("minimum"), rules.get("maximum")),
        "number": Number(rules.get("exclusiveMinimum", -math.inf), rules.get("maximum")),
        "string": click.STRING,
    }[kind]


def recipe(kind: type, name: str = "recipe", **changes: dict[str, Any] | None) -> Callable:
    """Return what adds the options of a recipe to a command, which is given the recipe.

    changes: to the option of a setting by its name, or None for one that the command leaves out
    """

    def wrap(command: Callable) -> Callable:
        @wraps(command)
        def run(*args: Any, **given: Any) -> Any:
            values = {one.name: _taken(one, given) for one in fields(kind)}
            return command(*args, **given | {name: kind(**values)})

        for one in reversed(fields(kind)):
            for option in reversed(list(_options(one, changes))):
                run = option(run)
        return run

    return wrap


def _options(one: Field, changes: dict[str, Any]) -> Iterator[Callable]:
    """The options of a field of a recipe."""
    path = one.metadata.get("path")
    if one.type is Model:
        yield model
    elif one.type is Attribution:
        for key in fields(Attribution):
            if (change := changes.get(key.name, {})) is not None:
                yield setting("attribution", key.name, **change)
    elif path and (change := changes.get(one.name, {})) is not None:
        word = one.metadata.get("word", one.name).replace("_", "-")
        yield setting(*path, **{"names": [f"--{word}", one.name]} | change)


def _taken(one: Field, given: dict[str, Any]) -> Any:
    """The value of a field, taken out of the options that are given."""
    if one.type is Attribution:
        keys = [key.name for key in fields(Attribution) if key.name in given]
        return Attribution(**{key: given.pop(key) for key in keys})
    return given.pop(one.name)


def read_settings(text: str) -> dict[str, Any]:
    """Return the mapping in a JSON text, or in the YAML or JSON file that the text names."""
    source = text
    if not text.lstrip().startswith("{"):
        if not Path(text).is_file():
            raise InputError(f"there is no settings file {text!r}")
        source = Path(text).read_text("utf-8")
    try:  # JSON first: YAML takes its 1e-05 for a word
        found = json.loads(source)
    except json.JSONDecodeError:
        found = config.of_yaml(source, text)
    if not isinstance(found, dict):
        raise InputError(f"expected keys and values, got {text!r}")
    return found


def are_settings(text: str) -> bool:
    """Return whether a text is JSON or names a file of settings, and is no name of a network."""
    return text.lstrip().startswith("{") or text.endswith((".json", ".yaml", ".yml"))


def read_model(text: str) -> Model:
    """Return the model that is named, or whose settings are given or stand in a file."""
    given = _only_model(read_settings(text), text) if are_settings(text) else {"source": text}
    return config.model(given)


def _read_model(_context: click.Context, _option: click.Parameter, text: str) -> Model:
    model = read_model(text)
    if are_settings(text):
        return model
    return replace(model, weights="IMAGENET1K_V1") if model.library == "torchvision" else model


def _only_model(given: dict[str, Any], text: str) -> dict[str, Any]:
    """The settings of a model; of a study those of its only one."""
    of_study = given.get("models")
    if not isinstance(of_study, dict):
        return given
    if len(of_study) != 1:
        raise InputError(
            f"{text} is of a study, of the models {', '.join(map(str, of_study))}; put what stands "
            "below one of them into a file of its own"
        )
    return next(iter(of_study.values()))


def output(default: str | None = None, **changes: Any) -> Callable:
    """Return the option that names the file, or where it has a default the folder, to write."""
    attributes: dict[str, Any] = {"help": FOLDER if default else "The file to write."} | changes
    required = not default
    return click.option(
        "--output", "-o", type=File, required=required, default=default, **attributes
    )


def count(name: str, text: str, **changes: Any) -> Callable:
    """Return the option of a whole number of at least 1; `text` is its help."""
    return click.option(name, type=click.IntRange(1), help=text, **changes)


configfile = click.option(
    "--configfile", type=File, help="The configuration; by default config.yaml, else the demo's."
)
formats = setting("figures", "formats", names=["--format", "formats"])
fill = setting("masking", "fills", multiple=False, names=["--fill"], default="black")
model = click.option(
    "--model",
    required=True,
    callback=_read_model,
    help="A classifier of torchvision by name, with its weights IMAGENET1K_V1, of timm as "
    "timm/NAME, of the Hugging Face hub as hf/OWNER/NAME, or the settings of a model as in "
    "config.yaml: a YAML or JSON file, which may be that of a study of one model, or JSON itself, "
    """such as '{"source": "resnet50", "weights": "IMAGENET1K_V2"}'.""",
)


def compute(command: Callable) -> Callable:
    """Add the options of how a network is run."""
    text = "CPU threads to compute with; all by default."
    threads = count("--threads", text, callback=use_threads, expose_value=False)
    return setting("compute", "device")(setting("compute", "batch_size")(threads(command)))


def use_threads(_context: Any, _option: Any, count: int | None) -> None:
    """Compute with so many CPU threads; with all if None."""
    if count is not None:
        import torch

        torch.set_num_threads(count)
