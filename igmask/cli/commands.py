"""The commands: each reads its options and calls one function of its name.

They are a look ahead, the steps of the workflow in its order, and what people use by hand.
"""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from igmask.cli.options import (
    FOLDER,
    File,
    are_settings,
    compute,
    configfile,
    count,
    fill,
    output,
    read_settings,
    recipe,
    setting,
    use_threads,
)
from igmask.progress import log_to, say
from igmask.study import config, recipes, settings
from igmask.study.settings import Geometry, rules


class InOrder(click.Group):
    """A group that lists its commands in the order of the study, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names as the commands are defined."""
        return list(self.commands)


_SHOWN = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


@click.group(cls=InOrder, context_settings=_SHOWN)
@click.option("--log", type=File, help="Write progress and errors here, too.")
@click.version_option(package_name="igmask")
def app(log: Path | None) -> None:
    """What happens to an image classifier when the unimportant parts of an image are masked out?

    Run the whole study with `snakemake --cores all`, and `igmask check` before it; a single image
    with `igmask explain`. The other commands are the steps of the study, in their order.
    """
    log_to(log)


@app.command()
@configfile
@click.option(
    "--trial/--no-trial",
    default=True,
    help="Load the networks, compare them with the labels and time them.",
)
def check(configfile: Path | None, trial: bool) -> None:
    """Look for all that would stop the study, and estimate its time; writes nothing.

    Exits with 1 if something would.
    """
    from igmask.tools.check import check

    file = configfile or config.default_file()
    levels = []
    for finding in check(read_settings(str(file)), trial=trial):
        click.echo(str(finding))
        levels.append(finding.level)
    n_errors, n_warnings = levels.count("error"), levels.count("warning")
    to_heed = f"{n_warnings} warning{'s' * (n_warnings > 1)} to heed" * (n_warnings > 0)
    to_mend = f"{n_errors} to mend" * (n_errors > 0)
    click.echo(f"\n{to_mend or to_heed or 'all is well'}: {file}")
    sys.exit(1 if n_errors else 0)


@app.command()
def schema() -> None:
    """Print the JSON schema of config.yaml, by which editors check and complete it.

    Save it as igmask.schema.json, and begin config.yaml with the line

    # yaml-language-server: $schema=igmask.schema.json
    """
    click.echo(json.dumps(settings.schema(), indent=2, ensure_ascii=False))


@app.command()
@recipe(recipes.Train)
@output()
def train(output: Path, recipe: recipes.Train) -> None:
    """Train a model on the demo's drawn images; its settings need `train`."""
    from igmask.steps.train import train

    train(output, recipe)


@app.command()
@click.option(
    "--dataset",
    required=True,
    callback=lambda _context, _option, text: read_settings(text),
    help="Settings of a dataset as in config.yaml: a YAML or JSON file, or JSON itself, such as "
    """'{"source": "folder", "root": "photos"}'.""",
)
@recipe(recipes.Index)
@output()
def index(output: Path, recipe: recipes.Index) -> None:
    """List the images of a dataset: name, path, label."""
    from igmask.steps.index import index

    index(output, recipe)


@app.command()
@click.argument("index", type=File)
@click.option("--own", multiple=True, help="A function of your own that has to be there, too.")
@click.option("--fills", multiple=True, help="A fill of your own, to be tried.")
@click.option("--controls", multiple=True, help="A control of your own, to be tried.")
@recipe(recipes.Preflight)
@output()
def preflight(index: Path, output: Path, recipe: recipes.Preflight) -> None:
    """Check a model before work begins: weights, output, the labels of INDEX."""
    from igmask.steps.preflight import preflight

    preflight(index, output, recipe)


@app.command()
@click.argument("index", type=File)
@count("--size", "Side of the crop, in pixels.", required=True)
@count("--resize", "Length of the shorter side before.")
@click.option(
    "--interpolation",
    type=click.Choice([way for way in rules("models", "*", "interpolation")["enum"] if way]),
    default="bilinear",
    help="Of the resizing.",
)
@click.option(
    "--squash", type=bool, default=False, help="Both sides get the length --resize, or else --size."
)
@click.option("--shard", default="1-of-1", help="Which part of the images.")
@setting("dataset", "on_bad_image")
@count("--workers", "Threads that decode; all cores by default.")
@output()
def prepare(
    index: Path, output: Path, workers: int | None, shard: str, on_bad_image: str, **geometry: Any
) -> None:
    """Decode, resize and crop the images of INDEX, once for all networks of the same input."""
    from igmask.steps.prepare import prepare

    recipe = recipes.Prepare(Geometry(**geometry), shard, on_bad_image)
    prepare(index, output, recipe, workers=workers)


@app.command()
@click.argument("images", type=File)
@recipe(recipes.Attribute)
@click.option("--classes", type=File, help="Scores whose predicted classes are attributed.")
@setting("compute", "engine")
@compute
@output()
def attribute(images: Path, output: Path, recipe: recipes.Attribute, **how: Any) -> None:
    """Integrated Gradients of the prepared IMAGES, summed over squares."""
    from igmask.steps.attribute import attribute

    attribute(images, output, recipe, **how)


@app.command()
@click.argument("images", type=File, nargs=-1, required=True)
@recipe(recipes.Randomise)
@output()
def randomise(images: tuple[Path, ...], output: Path, recipe: recipes.Randomise) -> None:
    """Draw a network's weights anew, for control randomised; its norms see the prepared IMAGES."""
    from igmask.steps.randomise import randomise

    randomise(list(images), output, recipe)


@app.command()
@click.argument("scores", type=File, nargs=-1, required=True)
@recipe(recipes.Mask, p={"names": ["-p", "--p"], "required": True, "default": None})
@output(help=FOLDER)
def mask(scores: tuple[Path, ...], output: Path, recipe: recipes.Mask) -> None:
    """Select the squares that hold the top p %, from the SCORES of all shards: 50.npy and so on."""
    from igmask.steps.mask import mask

    mask(list(scores), output, recipe)


@app.command()
@click.argument("images", type=File, nargs=-1, required=True)
@click.option("--name", help="What the tables call the model; its source by default.")
@click.option("--masks", type=File, multiple=True, help="Of `igmask mask`, a file a p.")
@click.option("--scores", type=File, multiple=True, help="Of `igmask attribute`, all shards.")
@click.option("--randomised", type=File, multiple=True, help="The same, of the randomised network.")
@recipe(recipes.Evaluate, controls={"default": None})
@compute
@output(help=FOLDER)
def evaluate(images: tuple[Path, ...], output: Path, recipe: recipes.Evaluate, **how: Any) -> None:
    """Predict the prepared IMAGES of all shards, original and masked: one record an image.

    Writes original.parquet and, for each of the masks, modes and fills, keep-50-black.parquet and
    its like, of a control keep-50-black-random.parquet. What was evaluated before, of the same with
    the same settings, is not evaluated again.
    """
    from igmask.steps.evaluate import evaluate

    evaluate(list(images), output, recipe, **how)


@app.command()
@click.argument("records", type=File, nargs=-1, required=True)
@output("results/tables")
def tables(records: tuple[Path, ...], **options: Any) -> None:
    """Tables 1, 2 and 3, and accuracy.csv, their long form, from the RECORDS of all conditions.

    They are files, or the folders of `igmask evaluate`, records/ and curves/. Of curves (.npy) come
    tables 4 and 5, and curves.csv and areas.csv, their long forms.
    """
    from igmask.report.tables import tables

    kinds = ("*.parquet", "*.npy")
    inside = [
        sorted(chain(*map(path.glob, kinds))) if path.is_dir() else [path] for path in records
    ]
    found = list(chain.from_iterable(inside))
    curves = [path for path in found if path.suffix == ".npy"]
    beside = {path.with_suffix(".parquet") for path in curves}
    tables([path for path in found if path not in {*curves, *beside}], curves, **options)


@app.command()
@click.argument("files", type=File, nargs=-1, required=True)
@click.option(
    "--model-name",
    default="model",
    show_default=False,
    help="The model's name, in titles and file names.",
)
@setting("figures", "n_images")
@output("results/figures")
def examples(files: tuple[Path, ...], **options: Any) -> None:
    """Pictures of one model from its FILES: images, scores, masks and records."""
    from igmask.report.examples import examples

    examples(list(files), **options)


@app.command()
@click.argument("accuracy", type=File)
@click.option("--areas", type=File, help="curves.csv of `igmask tables`, drawn against the area.")
@output("results/figures")
def curves(accuracy: Path, **options: Any) -> None:
    """Plots of ACCURACY (accuracy.csv) against p and against the area kept."""
    from igmask.report.curves import curves

    curves(accuracy, **options)


@app.command()
@click.argument("image", type=File)
@recipe(recipes.Mask, "selection", p={"names": ["-p", "--p"], "default": [50.0]})
@fill
@click.option(
    "--classes",
    help="A file of the names of the network's classes, one a line; imagenet: ILSVRC 2012's.",
)
@recipe(
    recipes.Attribute,
    target={
        "type": click.STRING,
        "help": "The class whose output is attributed: predicted, or one by its number or name.",
    },
)
@compute
@output(help="The picture to write, as PNG, PDF, SVG, JPEG (.jpg) or WebP, by its name.")
def explain(image: Path, output: Path, **options: Any) -> None:
    """Draw one IMAGE: original, attribution, keep and drop, with the model's predictions."""
    from igmask.report.explain import explain

    explain(image, output, **options)


@app.command()
@click.argument("results", type=File, default="results", required=False)
@configfile
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

    flow = Workflow(read_settings(str(configfile or config.default_file())))
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
@click.option("--masks", type=File, help="Of `igmask mask`; without: original images.")
@setting("masking", "modes", multiple=False, names=["--mode"], default="keep")
@fill
@setting("masking", "blur_sigma")
@setting("seed")
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
@count("--size", "Side of the input, where it is not known.")
@setting("compute", "device")
def inspect(model: str, size: int | None, device: str) -> None:
    """Where the affine stem of MODEL ends, its share of the work, memory an image and a step.

    MODEL is a classifier by name, of torchvision, timm (timm/NAME) or the Hugging Face hub
    (hf/OWNER/NAME), or the settings of a model as in config.yaml. Weights are not needed: a network
    is drawn at random, unless they are named.
    """
    import torch

    from igmask.devices import pick_device
    from igmask.inputs import models
    from igmask.inputs.networks import library_of
    from igmask.tools.inspect import inspect as inspected
    from igmask.tools.inspect import report

    asked = config.model(read_settings(model) if are_settings(model) else {"source": model})
    if asked.weights_kind == "library":
        asked = replace(asked, weights="none")
    library, where = library_of(asked), pick_device(device)
    described = library.described(replace(asked, size=size or asked.size))
    side = described.size or library.usual_size(asked)
    network = models.with_output(models.evaluating(models.build(described)), described).to(where)
    images = torch.rand(2, 3, side, side, device=where)
    print(report(described.source, inspected(network, images), (3, side, side)))


@app.command()
@click.argument("models", nargs=-1)
@count("--n-images", "Images, of quality 32, else 4, attributed together.")
@count("--n-steps", "Steps m.", default=50)
@count("--repeats", "Times each way is run; the median counts.", default=5)
@click.option(
    "--budget", "budget_s", type=click.FloatRange(0), default=60,
    help="Seconds after which a way takes no more turns of a network, but two at least.",
)  # fmt: skip
@click.option(
    "--skip", multiple=True, help="What to leave out: 'igmask bf16', '*tuned', memory, …; a kernel."
)
@click.option(
    "--compile/--no-compile", "compiled", default=None,
    help="Kernels beside torch.compile, too; on a GPU by default.",
)  # fmt: skip
@configfile
@setting("compute", "device")
@count("--threads", "CPU threads; all by default.")
@output("benchmarks/results")
def bench(models: tuple[str, ...], output: Path, **options: Any) -> None:
    """Attributions by igmask and by Captum, side by side: time, error, memory.

    Results of the same machine and settings in the folder stay beside the new ones.

    MODELS: resnet20 and resnet56 (of CIFAR-10's size), mobilenet_v3_large, vgg16, inception_v3,
    resnet50, densenet121, vit_b_16; all of them by default. Needs Captum (pip install -e
    '.[bench]'), and a machine with nothing else to do.

    `igmask bench quality --configfile FILE [MODEL]...` instead measures the time to a given
    quality, of the networks and images of a study: how near igmask's rules and Captum's come, in
    how much time, to what 1,200 steps give. Each takes some minutes; quality-cpu.md says, and
    quality-cpu.png shows, what was found. Of the options --n-images, --repeats, --device and
    --threads count.

    `igmask bench kernels` sets each Triton kernel beside PyTorch, eager and compiled, and
    beside a copy of as many bytes. Without a GPU it only shows that it works.
    """
    from igmask.bench import attributions, kernels, quality, reached

    write: Callable[..., list[Path]]
    of_quality = models[:1] == ("quality",)
    options["n_images"] = options["n_images"] or (quality.N_IMAGES if of_quality else 4)
    if of_quality:
        _leave_out(options, "n_steps", "budget_s", "skip", "compiled", of="quality")
        study = config.parse(read_settings(str(options.pop("configfile") or config.default_file())))
        measured, write = quality.measure(study, models[1:], **options), reached.write
    elif models == ("kernels",):
        _leave_out(options, "repeats", "budget_s", "configfile", of="kernels")
        use_threads(None, None, options.pop("threads"))
        measured, write = kernels.measure(**options), kernels.write
    else:
        _leave_out(options, "compiled", "configfile", of="attributions")
        measured = attributions.measure(models or attributions.MODELS, **options)
        write = attributions.write
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
