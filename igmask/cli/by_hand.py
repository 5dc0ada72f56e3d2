"""What people use by hand: each command reads its options and calls one function of its name."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from igmask.asked import config, recipes
from igmask.cli.commands import app
from igmask.cli.options import (
    File,
    compute,
    configfile,
    count,
    fill,
    output,
    read_model,
    read_settings,
    recipe,
    setting,
    use_threads,
)
from igmask.progress import say


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
@click.argument("first", type=File)
@click.argument("second", type=File)
@setting("statistics", "replicates")
@setting("seed")
def compare(first: Path, second: Path, **how: Any) -> None:
    """Compare the records FIRST and SECOND of the same images: two conditions, or two networks.

    The difference with its 95 % intervals, the images that are right under one of them alone, and
    McNemar's test. Records are files such as results/demo/models/vgg/records/keep-50-black.parquet.
    """
    from igmask.report.claims.comparisons import of_files

    for line in of_files(first, second, **how):
        click.echo(line)


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
    from igmask.tools.inspect import of_model

    click.echo(of_model(read_model(model), size=size, device=device))


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
