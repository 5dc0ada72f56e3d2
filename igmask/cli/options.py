"""Options of the commands: defaults, choices and help are those of the settings of their names."""

import json
from collections.abc import Callable, Iterator
from dataclasses import Field, fields
from functools import wraps
from math import isfinite
from pathlib import Path
from typing import Any

import click

from igmask.errors import InputError
from igmask.study import config, settings
from igmask.study.settings import Attribution, Model

File = click.Path(path_type=Path)


class Percentage(click.FloatRange):
    """A percentage that a selection accepts: in (0, 100], with at most two decimals."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the number, or fail as click does."""
        number = super().convert(value, param, ctx)
        if number != round(number, 2):  # NaN included
            self.fail(f"{value} has more than two decimals.", param, ctx)
        return number


Percent = Percentage(0, 100, min_open=True)


class Number(click.FloatRange):
    """A number in a range; neither NaN, which click takes to be in any, nor infinite."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the number, or fail as click does."""
        number = super().convert(value, param, ctx)
        if not isfinite(number):
            self.fail(f"{value} is not finite.", param, ctx)
        return number


class IntegerOr(click.IntRange):
    """An integer, or one word."""

    def __init__(self, least: int, word: str) -> None:
        super().__init__(least)
        self.word = word
        self.name = f"integer or {word}"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number or the word, or fail as click does."""
        return value if value == self.word else super().convert(value, param, ctx)


# For the option of one of the values that a list may have.
ONE = {"multiple": False}


def setting(*path: str, **changes: Any) -> Callable:
    """Return the option of a key of the configuration, such as ("attribution", "n_steps").

    Of a list it takes a value, or several times one. A key that may be nothing may be left out.
    """
    rules = settings.rules(*path)
    several = changes.pop("multiple", "items" in rules)
    text, one = rules["description"], rules.get("items", rules)
    attributes: dict[str, Any] = {
        "type": _kind(one),
        "multiple": several,
        "default": rules.get("default"),
        "show_default": True,
        "help": f"{text[0].upper()}{text[1:]}{'; may be given several times' * several}.",
    }
    names = changes.pop("names", [f"--{path[-1].replace('_', '-')}"])
    return click.option(*names, **attributes | changes)


def _kind(rules: dict[str, Any]) -> Any:
    """What click checks a value by."""
    kind: Any = rules.get("type")
    if "enum" in rules:
        return click.Choice(rules["enum"])
    if kind == ["integer", "string"]:
        return IntegerOr(rules["minimum"], rules["pattern"].strip("^$"))
    if isinstance(kind, list):
        kind = kind[0]  # or null
    if rules.get("maximum") == 100:
        return Percent
    return {
        "integer": click.IntRange(rules.get("minimum")),
        "number": Number(rules.get("exclusiveMinimum"), rules.get("maximum"), min_open=True),
        "string": click.STRING,
    }[kind]


def recipe(kind: type, name: str = "recipe", **changes: dict[str, Any] | None) -> Callable:
    """Return what adds the options of a recipe to a command, which is given the recipe.

    changes: to the option of a setting by its name, or None for one that the command leaves out
    """

    def wrap(command: Callable) -> Callable:
        @wraps(command)
        def run(*args: Any, **given: Any) -> Any:
            values = {one.name: _taken(one, given, changes) for one in fields(kind)}
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
        yield model()
    elif one.type is Attribution:
        for key in fields(Attribution):
            if (change := changes.get(key.name, {})) is not None:
                yield setting("attribution", key.name, **change)
    elif path and (change := changes.get(one.name, {})) is not None:
        word = one.metadata.get("word", one.name).replace("_", "-")
        yield setting(*path, **{"names": [f"--{word}", one.name]} | change)


def _taken(one: Field, given: dict[str, Any], changes: dict[str, Any]) -> Any:
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


def _read_model(_context: click.Context, _option: click.Parameter, text: str) -> Model:
    if are_settings(text):
        return config.model(read_settings(text))
    return config.model({"source": text, "weights": "IMAGENET1K_V1"})


def output(default: str | None = None, **changes: Any) -> Callable:
    """Return the option that names the file, or where it has a default the folder, to write."""
    attributes: dict[str, Any] = {
        "type": File,
        "required": not default,
        "default": default,
        "show_default": True,
        "help": "The folder to write to." if default else "The file to write.",
    }
    return click.option("--output", "-o", **attributes | changes)


def folder() -> Callable:
    """Return the option that names the folder to write to, where there is no default."""
    text = "The folder to write to."
    return click.option("--output", "-o", "folder", type=File, required=True, help=text)


def configfile() -> Callable:
    """Return the option that names the configuration."""
    text = "The configuration; by default config.yaml, else the demo's."
    return click.option("--configfile", type=File, help=text)


def model() -> Callable:
    """Return the option that describes a model."""
    return click.option(
        "--model",
        required=True,
        callback=_read_model,
        help="A classifier of torchvision by name, with its weights IMAGENET1K_V1, or the settings "
        "of a model as in config.yaml: a YAML or JSON file, or JSON itself, such as "
        """'{"source": "resnet50", "weights": "IMAGENET1K_V2"}'.""",
    )


def masking(command: Callable) -> Callable:
    """Add the options of which masks are applied, and how."""
    masks = click.option("--masks", type=File, help="Of `igmask mask`; without: original images.")
    mode = setting("masking", "modes", **ONE, names=["--mode"], default="keep")
    return masks(mode(fill()(command)))


def fill() -> Callable:
    """Return the option of what masked pixels become."""
    return setting("masking", "fills", **ONE, names=["--fill"], default="black")


def compute(command: Callable) -> Callable:
    """Add the options of how a network is run."""
    threads = click.option(
        "--threads",
        type=click.IntRange(1),
        callback=use_threads,
        expose_value=False,
        help="CPU threads to compute with; all by default.",
    )
    return setting("compute", "device")(setting("compute", "batch_size")(threads(command)))


def use_threads(_context: Any, _option: Any, count: int | None) -> None:
    """Compute with so many CPU threads; with all if None."""
    if count is not None:
        import torch

        torch.set_num_threads(count)
