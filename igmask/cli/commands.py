"""The commands of a study: a look ahead, and the steps of the workflow in its order.

Each reads its options and calls one function of its name.
"""

import json
import sys
from pathlib import Path
from typing import Any

import click

from igmask.asked import config, recipes, settings
from igmask.asked.settings import Geometry, rules
from igmask.cli.options import (
    FOLDER,
    File,
    compute,
    configfile,
    count,
    formats,
    output,
    read_settings,
    recipe,
    setting,
)
from igmask.errors import suggestion
from igmask.progress import log_to


class InOrder(click.Group):
    """A group that lists its commands in the order of the study, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names as the commands are defined, what is of one image first."""
        return sorted(self.commands, key=lambda name: name != "explain")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the first sentence of each command whole, over as many lines as it takes."""
        names = [(name, self.commands[name]) for name in self.list_commands(ctx)]
        rows = [(name, one.get_short_help_str(limit=300)) for name, one in names if not one.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Return the command, or fail with those that it may have been meant to be."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            near = suggestion(args[0], self.commands, n=3) or "."
            ctx.fail(f"There is no command {args[0]!r}{near}")
        return super().resolve_command(ctx, args)


_SHOWN = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


@click.group(cls=InOrder, context_settings=_SHOWN)
@click.option("--log", type=File, help="Write progress and errors here, too.")
@click.version_option(package_name="igmask")
def app(log: Path | None) -> None:
    """What happens to an image classifier when the unimportant parts of an image are masked out?

    `igmask explain photo.jpg --model resnet50 -o picture.png` shows it for one image. The whole
    study is run by `snakemake --cores all`, and `igmask check` before it says what would stop it
    and how long it will take. The other commands are the steps of the study, in their order, and
    what is done by hand with its results.
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
@click.option(
    "--references", type=File, multiple=True, help="Images of all shards: of expected-gradients."
)
@setting("compute", "engine")
@compute
@output()
def attribute(images: Path, output: Path, recipe: recipes.Attribute, **how: Any) -> None:
    """Integrated Gradients of the prepared IMAGES, or what --method says, summed over squares."""
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
@click.option("--masks-of", help="The network whose masks these are, if it is another.")
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
@click.argument("images", type=File, nargs=-1, required=True)
@click.option("--name", default="model", help="What the tables call the model.")
@click.option("--masks", type=File, multiple=True, help="Of `igmask mask`, a file a p.")
@recipe(recipes.Converge, n_images={"names": ["--n-images", "n_images"], "default": 64})
@compute
@output(help=FOLDER)
def converge(
    images: tuple[Path, ...],
    output: Path,
    recipe: recipes.Converge,
    masks: tuple[Path, ...],
    **how: Any,
) -> None:
    """How far MASKS are from converged ones, of some of the prepared IMAGES of all shards."""
    from igmask.steps.converge import converge

    converge(list(images), output, recipe, masks=list(masks), **how)


@app.command()
@click.argument("masks", type=File, nargs=-1, required=True)
@click.option("--name", default="model", help="What the tables call the model.")
@recipe(recipes.Probe)
@output()
def probe(masks: tuple[Path, ...], output: Path, recipe: recipes.Probe) -> None:
    """Can a linear classifier tell the class from the MASKS alone? Each image by the others."""
    from igmask.steps.probe import probe

    probe(list(masks), output, recipe)


@app.command()
@click.argument("records", type=File, nargs=-1, required=True)
@recipe(recipes.Tables)
@output("results/tables")
def tables(records: tuple[Path, ...], output: Path, recipe: recipes.Tables) -> None:
    """Tables 1, 2 and 3, and accuracy.csv, their long form, from the RECORDS of all conditions.

    They are files, or the folders of `igmask evaluate`, records/ and curves/. Of curves (.npy) come
    tables 4 and 5, and curves.csv and areas.csv, their long forms; comparisons, with intervals and
    tests, are table 6 and comparisons.csv; and table 7 and classes.csv say whether a network has
    collapsed to few answers, or may have read the class from the mask.
    """
    from igmask.report.tables import tables

    tables(list(records), output=output, recipe=recipe)


@app.command()
@click.argument("records", type=File, nargs=-1, required=True)
@output("results/tables")
def readings(records: tuple[Path, ...], output: Path) -> None:
    """In how many readings each sentence of the published text holds, from their RECORDS.

    They are files, or folders. `snakemake readings` computes them: scores, selections, outputs,
    targets, baselines, fills and controls as `readings` in config.yaml lists them.
    """
    from igmask.report.claims.readings import readings

    readings(list(records), output=output)


@app.command()
@click.argument("files", type=File, nargs=-1, required=True)
@click.option(
    "--model-name",
    default="model",
    show_default=False,
    help="The model's name, in titles and file names.",
)
@setting("figures", "n_images")
@formats
@output("results/figures")
def examples(files: tuple[Path, ...], **options: Any) -> None:
    """Pictures of one model from its FILES: images, scores, masks and records."""
    from igmask.report.examples import examples

    examples(list(files), **options)


@app.command()
@click.argument("accuracy", type=File)
@click.option("--areas", type=File, help="curves.csv of `igmask tables`, drawn against the area.")
@formats
@output("results/figures")
def curves(accuracy: Path, **options: Any) -> None:
    """Plots of ACCURACY (accuracy.csv) against p and against the area kept."""
    from igmask.report.curves import curves

    curves(accuracy, **options)


@app.command()
@click.argument("files", type=File, nargs=-1, required=True)
@click.option(
    "--model-name", default="model", show_default=False, help="The model's name on the page."
)
@click.option(
    "--randomised",
    type=File,
    multiple=True,
    help="Scores by the randomised network, for the control of that name; a file a shard.",
)
@setting("figures", "n_gallery")
@output()
def gallery(files: tuple[Path, ...], **options: Any) -> None:
    """What the page of a study shows of a model's images, from its FILES.

    They are images, scores and masks, and records or the folder that holds them.
    """
    from igmask.report.page.gallery import gallery

    gallery(list(files), **options)


@app.command()
@click.argument("tables", type=File)
@click.argument("galleries", type=File, nargs=-1)
@click.option(
    "--study",
    required=True,
    callback=lambda _context, _option, text: read_settings(text),
    help="The configuration: a YAML or JSON file, or JSON itself.",
)
@output()
def page(tables: Path, galleries: tuple[Path, ...], output: Path, study: dict[str, Any]) -> None:
    """One page of a study, from the folder of its TABLES and the GALLERIES of its models."""
    from igmask.report.page.page import page

    page(tables, output, study=study, galleries=list(galleries))
