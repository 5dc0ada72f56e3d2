"""The command line: each command reads its options, calls one function, and names its errors.

The commands are a look ahead, the steps of the workflow in its order, and what people use by hand.
Their options take defaults, choices and help from config.schema.json, each under its key's name.
"""

import gc
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from igmask.errors import InputError
from igmask.progress import log_to, say
from igmask.study import config
from igmask.study.config import Geometry, schema

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


def setting(*path: str, **changes: Any) -> Callable:
    """Return the option of a key of the configuration, such as ("attribution", "n_steps")."""
    rules = schema()
    for key in path:
        rules = rules["properties"][key]
    kinds = {
        "integer": click.IntRange(rules.get("minimum")),
        "number": Number(rules.get("exclusiveMinimum"), rules.get("maximum"), min_open=True),
        "string": click.STRING,
    }
    kind: Any = rules.get("type")
    if kind == ["integer", "string"]:
        kinds["either"], kind = IntegerOr(rules["minimum"], rules["pattern"].strip("^$")), "either"
    elif isinstance(kind, list):
        kind = kind[0]  # or null, which is to leave it out
    attributes: dict[str, Any] = {
        "type": click.Choice(rules["enum"]) if "enum" in rules else kinds[kind],
        "default": rules.get("default"),
        "show_default": True,
        "help": f"{rules['description'][0].upper()}{rules['description'][1:]}.",
    }
    return click.option(f"--{path[-1].replace('_', '-')}", **attributes | changes)


def choices(*path: str) -> list[str]:
    """Return the values that the items of a list in the configuration may have."""
    rules = schema()
    for key in path:
        rules = rules["properties"][key]
    return rules["items"]["enum"]


def _read_settings(text: str) -> dict[str, Any]:
    """The mapping in a JSON text, or in the YAML or JSON file that the text names."""
    source = text
    if not text.lstrip().startswith("{"):
        if not Path(text).is_file():
            raise InputError(f"there is no settings file {text!r}")
        source = Path(text).read_text("utf-8")
    try:  # JSON first: YAML takes its 1e-05 for a word
        settings = json.loads(source)
    except json.JSONDecodeError:
        settings = config.of_yaml(source, text)
    if not isinstance(settings, dict):
        raise InputError(f"expected keys and values, got {text!r}")
    return settings


def _are_settings(text: str) -> bool:
    return text.lstrip().startswith("{") or text.endswith((".json", ".yaml", ".yml"))


def _read_model(_context: click.Context, _option: click.Parameter, text: str) -> config.Model:
    if _are_settings(text):
        return config.model(_read_settings(text))
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


def seed() -> Callable:
    """Return the option of the seed."""
    return setting("seed")


def fill(command: Callable) -> Callable:
    """Add the option of what masked pixels become."""
    return click.option(
        "--fill",
        type=click.Choice(choices("masking", "fills")),
        default="black",
        show_default=True,
        help="What masked pixels become.",
    )(command)


def several(key: str) -> Callable:
    """Return the option of the values of a list under `masking`: one of them, or several times."""
    rules = schema()["properties"]["masking"]["properties"][key]
    text = rules["description"]
    return click.option(
        f"--{key.removesuffix('s')}",
        key,
        type=click.Choice(choices("masking", key)),
        multiple=True,
        default=rules["default"],
        show_default=True,
        help=f"{text[0].upper()}{text[1:]}; may be given several times.",
    )


def masking(command: Callable) -> Callable:
    """Add the options of which masks are applied, and how."""
    masks = click.option("--masks", type=File, help="Of `igmask mask`; without: original images.")
    mode = click.option(
        "--mode",
        type=click.Choice(choices("masking", "modes")),
        default="keep",
        show_default=True,
        help="Keep the selected squares, or drop them.",
    )
    return masks(mode(fill(command)))


def compute(command: Callable) -> Callable:
    """Add the options of how a network is run."""
    threads = click.option(
        "--threads",
        type=click.IntRange(1),
        callback=_use_threads,
        expose_value=False,
        help="CPU threads to compute with; all by default.",
    )
    return setting("compute", "device")(setting("compute", "batch_size")(threads(command)))


def _use_threads(_context: Any, _option: Any, count: int | None) -> None:
    if count is not None:
        import torch

        torch.set_num_threads(count)


class InOrder(click.Group):
    """A group that lists its commands in the order of the study, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names as the commands are defined."""
        return list(self.commands)


@click.group(
    cls=InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--log", type=File, help="Write progress and errors here, too.")
@click.version_option(package_name="igmask")
def app(log: Path | None) -> None:
    """What happens to an image classifier when the unimportant parts of an image are masked out?

    Run the whole study with `snakemake --cores all`, and `igmask check` before it; a single image
    with `igmask explain`. The other commands are the steps of the study, in their order.
    """
    log_to(log)


@app.command()
@configfile()
@click.option(
    "--trial/--no-trial",
    default=True,
    show_default=True,
    help="Load the networks, compare them with the labels and time them.",
)
def check(configfile: Path | None, trial: bool) -> None:
    """Look for all that would stop the study, and estimate its time; writes nothing.

    Exits with 1 if something would.
    """
    from igmask.tools.check import check

    file = configfile or config.default_file()
    levels = []
    for finding in check(_read_settings(str(file)), trial=trial):
        click.echo(str(finding))
        levels.append(finding.level)
    n_errors, n_warnings = levels.count("error"), levels.count("warning")
    to_heed = f"{n_warnings} warning{'s' * (n_warnings > 1)} to heed: {file}"
    well = to_heed if n_warnings else f"all is well: {file}"
    click.echo(f"\n{n_errors} to mend: {file}" if n_errors else f"\n{well}")
    sys.exit(1 if n_errors else 0)


@app.command()
@model()
@setting("dataset", "n_train")
@seed()
@output()
def train(**options: Any) -> None:
    """Train a model on the demo's drawn images; its settings need `train`."""
    from igmask.steps.train import train

    train(options.pop("output"), **options)


@app.command()
@click.option(
    "--dataset",
    required=True,
    help="Settings of a dataset as in config.yaml: a YAML or JSON file, or JSON itself, such as "
    """'{"source": "folder", "root": "photos"}'.""",
)
@seed()
@output()
def index(dataset: str, **options: Any) -> None:
    """List the images of a dataset: name, path, label."""
    from igmask.steps.index import index

    index(_read_settings(dataset), **options)


@app.command()
@click.argument("index", type=File)
@model()
@setting("attribution", "baseline")
@output()
def preflight(index: Path, **options: Any) -> None:
    """Check a model before work begins: weights, output, the labels of INDEX."""
    from igmask.steps.preflight import preflight

    preflight(index, **options)


@app.command()
@click.argument("index", type=File)
@click.option("--size", type=click.IntRange(1), required=True, help="Side of the crop, in pixels.")
@click.option("--resize", type=click.IntRange(1), help="Length of the shorter side before.")
@click.option(
    "--interpolation",
    type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos"]),
    default="bilinear",
    show_default=True,
    help="Of the resizing.",
)
@click.option("--shard", default="1-of-1", show_default=True, help="Which part of the images.")
@setting("dataset", "on_bad_image")
@click.option(
    "--workers", type=click.IntRange(1), help="Threads that decode; all cores by default."
)
@output()
def prepare(index: Path, size: int, resize: int, interpolation: str, **options: Any) -> None:
    """Decode, resize and crop the images of INDEX, once for all networks of the same input."""
    from igmask.steps.prepare import prepare

    prepare(index, geometry=Geometry(size, resize, interpolation), **options)


@app.command()
@click.argument("images", type=File)
@model()
@setting("attribution", "of")
@setting("attribution", "target")
@setting("attribution", "baseline")
@setting("attribution", "blur_sigma")
@setting("attribution", "n_baselines")
@setting("attribution", "rule")
@setting("attribution", "n_steps")
@setting("attribution", "tolerance")
@setting("attribution", "agreement")
@setting("attribution", "most_steps")
@setting("attribution", "precision")
@setting("squares", "side")
@seed()
@setting("compute", "engine")
@compute
@output()
def attribute(images: Path, **options: Any) -> None:
    """Integrated Gradients of the prepared IMAGES, summed over squares."""
    from igmask.steps.attribute import attribute

    keys = schema()["properties"]["attribution"]["properties"]
    attribution = {key: options.pop(key) for key in keys}
    attribute(images, attribution=attribution, **options)


@app.command()
@click.argument("scores", type=File, nargs=-1, required=True)
@click.option(
    "-p",
    "--p",
    "percents",
    type=Percent,
    multiple=True,
    required=True,
    help="Percentage to select, in (0, 100]; may be given several times.",
)
@setting("selection", "by")
@setting("squares", "score")
@folder()
def mask(scores: tuple[Path, ...], **options: Any) -> None:
    """Select the squares that hold the top p %, from the SCORES of all shards: 50.npy and so on."""
    from igmask.steps.mask import mask

    mask(list(scores), **options)


@app.command()
@click.argument("images", type=File, nargs=-1, required=True)
@model()
@click.option("--name", help="What the tables call the model; its source by default.")
@click.option("--masks", type=File, multiple=True, help="Of `igmask mask`, a file a p.")
@several("modes")
@several("fills")
@click.option(
    "--control",
    "controls",
    type=click.Choice(choices("masking", "controls")),
    multiple=True,
    help="Also evaluate other masks of the same area; may be given several times.",
)
@seed()
@compute
@folder()
def evaluate(images: tuple[Path, ...], **options: Any) -> None:
    """Predict the prepared IMAGES of all shards, original and masked: one record an image.

    Writes original.parquet and, for each of the masks, modes and fills, keep-50-black.parquet and
    its like. What was evaluated before, of the same with the same settings, is not evaluated again.
    """
    from igmask.steps.evaluate import evaluate

    evaluate(list(images), **options)


@app.command()
@click.argument("records", type=File, nargs=-1, required=True)
@output("results/tables")
def tables(records: tuple[Path, ...], **options: Any) -> None:
    """Tables 1, 2 and 3, and accuracy.csv, their long form, from the RECORDS of all conditions."""
    from igmask.report.tables import tables

    tables(list(records), **options)


@app.command()
@click.argument("files", type=File, nargs=-1, required=True)
@click.option("--model-name", default="model", help="The model's name, in titles and file names.")
@setting("figures", "n_images")
@output("results/figures")
def examples(files: tuple[Path, ...], **options: Any) -> None:
    """Pictures of one model from its FILES: images, scores, masks and records."""
    from igmask.report.examples import examples

    examples(list(files), **options)


@app.command()
@click.argument("accuracy", type=File)
@output("results/figures")
def curves(accuracy: Path, **options: Any) -> None:
    """Plots of ACCURACY (accuracy.csv) against p and against the area kept."""
    from igmask.report.curves import curves

    curves(accuracy, **options)


@app.command()
@click.argument("image", type=File)
@model()
@click.option(
    "-p", "--p", type=Percent, multiple=True, default=[50.0], show_default=True,
    help="Percentage that is kept or dropped; may be given several times.",
)  # fmt: skip
@click.option("--classes", type=File, help="Names of the network's classes, one a line.")
@setting("attribution", "of")
@setting(
    "attribution", "target", type=click.STRING,
    help="The class whose output is attributed: predicted, or a class by its number or name.",
)  # fmt: skip
@setting("attribution", "baseline")
@setting("attribution", "blur_sigma")
@setting("attribution", "n_baselines")
@setting("attribution", "rule")
@setting("attribution", "n_steps")
@setting("squares", "side")
@setting("squares", "score")
@setting("selection", "by")
@fill
@seed()
@compute
@output(help="The picture to write, as PNG, PDF, SVG, JPEG (.jpg) or WebP, by its name.")
def explain(image: Path, **options: Any) -> None:
    """Draw one IMAGE: original, attribution, keep and drop, with the model's predictions."""
    from igmask.report.explain import explain

    explain(image, **options)


@app.command()
@click.argument("results", type=File, default="results", required=False)
@configfile()
@click.option(
    "--remove", is_flag=True, help="Remove what is bad, so that the next run makes it again."
)
@click.option(
    "--deep",
    is_flag=True,
    help="Decode every image again and compare, not those alone whose file was written to since.",
)
def verify(results: Path, configfile: Path | None, remove: bool, deep: bool) -> None:
    """Check every file of a study: is it there, whole, and made with these settings of the others?

    RESULTS is the folder, results/ by default. Exits with 1 if something is missing, damaged or
    stale.
    """
    from igmask.arrays import ADVICE
    from igmask.plan import Workflow
    from igmask.tools import verify as checks

    flow = Workflow(_read_settings(str(configfile or config.default_file())))
    n_bad = 0
    for made, problem in checks.verify(flow, results, deep=deep):
        n_bad += 1
        say(f"{made.path}: {problem}")
        if remove:
            checks.remove(made, results)
    if n_bad:
        advice = ", and are removed" if remove else f"; {ADVICE}"
        say(f"{n_bad} files are not as they should be{advice}")
        sys.exit(1 - remove)
    say("every file is there, whole, and of this configuration")


@app.command()
@click.argument("images", type=File, nargs=-1, required=True)
@masking
@output(help="The folder to write to; an export that was cut short goes on.")
def export(images: tuple[Path, ...], **options: Any) -> None:
    """Write the prepared IMAGES of all shards, original or masked, as PNGs: a folder a class.

    They are the pixels that `igmask evaluate` shows to a network; the colours of the fills mean and
    image-mean are rounded to the nearest that a PNG can hold. torchvision's ImageFolder reads the
    folder with its labels; labels.csv lists them, too.
    """
    from igmask.tools.export import export

    export(list(images), **options)


@app.command()
@click.argument("model", metavar="MODEL")
@click.option("--size", type=click.IntRange(1), help="Side of the input, where it is not known.")
@setting("compute", "device")
def inspect(model: str, size: int | None, device: str) -> None:
    """Where the affine stem of MODEL ends, its share of the work, memory an image and a step.

    MODEL is a classifier of torchvision by name, or the settings of a model as in config.yaml.
    Weights are not needed: a network without them is drawn at random.
    """
    import torch

    from igmask.devices import pick_device
    from igmask.engine.inspect import inspect as inspected
    from igmask.engine.inspect import report
    from igmask.inputs import models

    described = config.model(_read_settings(model) if _are_settings(model) else {"source": model})
    side = size or described.size or models.usual_size(described)
    where = pick_device(device)
    network = models.with_output(models.evaluating(models.build(described)), described).to(where)
    images = torch.rand(2, 3, side, side, device=where)
    print(report(described.source, inspected(network, images), (3, side, side)))


@app.command()
@click.argument("models", nargs=-1)
@click.option(
    "--n-images",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Images attributed together.",
)
@click.option("--n-steps", type=click.IntRange(1), default=50, show_default=True, help="Steps m.")
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Times each way is run; the median counts.",
)
@click.option(
    "--budget", "budget_s", type=click.FloatRange(0), default=60, show_default=True,
    help="Seconds after which a way takes no more turns of a network, but two at least.",
)  # fmt: skip
@click.option(
    "--skip", multiple=True, help="What to leave out: 'igmask bf16', '*tuned', memory, …; a kernel."
)
@click.option(
    "--compile/--no-compile", "compiled", default=None,
    help="Kernels beside torch.compile, too; on a GPU by default.",
)  # fmt: skip
@setting("compute", "device")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all by default.")
@output("benchmarks/results")
def bench(models: tuple[str, ...], output: Path, **options: Any) -> None:
    """Attributions by igmask and by Captum, side by side: time, error, memory.

    Results of the same machine and settings in the folder stay beside the new ones.

    MODELS: resnet20 and resnet56 (of CIFAR-10's size), mobilenet_v3_large, vgg16, inception_v3,
    resnet50, densenet121, vit_b_16; all of them by default. Needs Captum (pip install -e
    '.[bench]'), and a machine with nothing else to do.

    `igmask bench kernels` instead sets each Triton kernel beside PyTorch, eager and compiled, and
    beside a copy of as many bytes. Without a GPU it only shows that it works.
    """
    from igmask.bench import attributions, attributions_page, kernels, kernels_page

    write: Callable[..., list[Path]]
    if models == ("kernels",):
        _leave_out(options, "repeats", "budget_s", of="kernels")
        _use_threads(None, None, options.pop("threads"))
        measured, write = kernels.measure(**options), kernels_page.write
    else:
        _leave_out(options, "compiled", of="attributions")
        measured = attributions.measure(models or attributions.MODELS, **options)
        write = attributions_page.write
    command = shlex.join(["igmask", *sys.argv[1:]])
    paths: list[Path] = []
    for result in measured:
        paths = write(result, output, command)  # each time, so that nothing is lost
    for path in paths:
        say(str(path))


def _leave_out(options: dict[str, Any], *names: str, of: str) -> None:
    """Take out options that say nothing of this benchmark; refuse them if they were given."""
    context = click.get_current_context()
    for option in (option for option in context.command.params if option.name in names):
        options.pop(str(option.name))
        if context.get_parameter_source(str(option.name)) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"{option.opts[0]} has no place in the benchmark of {of}")


def main() -> None:
    """Run the command line; errors that a user can mend are one message, without a traceback."""
    gc.set_threshold(10_000, 50, 50)  # imports make many objects and no cycles: a tenth of a job
    try:
        app()
    except SystemExit as ended:
        if not ended.code:
            _leave()
        raise
    except (InputError, OSError) as error:
        if os.environ.get("IGMASK_DEBUG"):
            raise
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        say(f"igmask: error: {kind}{error}")
        sys.exit(1)
    except Exception:
        say(traceback.format_exc(), terminal=False)  # for the log; the terminal gets it anyway
        raise


def _leave() -> None:
    """End a process that has done its work, without taking PyTorch's libraries apart.

    That takes as long as two thirds of a second, a fifth of a short job, and a study has many.
    Every file is closed by now.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
