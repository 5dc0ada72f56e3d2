"""What every file of a study should be: the settings that it carries, and what it was made of."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from igmask.asked.own import code_of
from igmask.asked.recipes import made_by as said_of
from igmask.asked.recipes import records_of, stamp
from igmask.plan import Workflow


@dataclass(frozen=True)
class Made:
    """A file of the study, and what it should be.

    settings: those that it carries, or some of them; None if it carries none
    read:     what it was made of: arrays, in order, or files of weights or code
    """

    path: Path
    settings: dict[str, Any] | None = None
    read: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def outputs(self) -> list[Path]:
        """Return the files of the same job: an array has its records beside it."""
        paired = self.path.suffix == ".npy"
        return [self.path, records_of(self.path)] if paired else [self.path]


def made(flow: Workflow) -> Iterator[Made]:
    """Yield every file of the study, those that others are made of first."""
    folder, one = Path(flow.folder), SimpleNamespace()
    settings = stamp("index") | said_of(flow.index(one))
    code = code_of(flow.study.dataset.source)
    yield Made(folder / "index.parquet", settings, {"code": code} if code else {})
    settings = settings | stamp("prepare", settings)
    for geometry in flow.geometries:
        for shard in flow.shards:
            recipe = flow.prepare(SimpleNamespace(geometry=geometry, shard=shard))
            path = folder / "images" / geometry / f"{shard}.npy"
            yield Made(path, settings | said_of(recipe))
    prepared = {name: settings | _said_of_images(flow, name) for name in flow.models}
    for name, of_images in prepared.items():
        yield from _made_of(flow, name, of_images)
    for name, of_images in prepared.items():  # under other networks' masks, so after those of all
        yield from _made_transfers(flow, SimpleNamespace(model=name), of_images)
    kinds = product(flow.table_numbers(), ("csv", "md", "html", "tex"))
    tables = [*flow.long_forms(), *(f"table{number}.{kind}" for number, kind in kinds)]
    yield from (Made(Path("results/tables", table)) for table in tables)
    pages = [*flow.galleries(SimpleNamespace()), "results/index.html"]
    yield from (Made(Path(path)) for path in [*flow.figures(), *pages])


def _said_of_images(flow: Workflow, name: str) -> dict[str, Any]:
    """The settings of a model's prepared images, whatever their shard."""
    geometry, shard = flow.models[name].geometry.name, flow.shards[0]
    said = said_of(flow.prepare(SimpleNamespace(geometry=geometry, shard=shard)))
    return {key: value for key, value in said.items() if key != "shard"}


def _made_of(flow: Workflow, name: str, settings: dict[str, Any]) -> Iterator[Made]:
    """Every file of a model alone; `settings` are those of its prepared images."""
    model, one = flow.models[name], SimpleNamespace(model=name)
    images, scores = ([Path(x) for x in paths] for paths in (flow.images(one), flow.scores(one)))
    if model.train is not None:
        yield Made(Path(str(model.weights)), stamp("train") | said_of(flow.train(one)))
    looked_at = stamp("preflight", stamp("index"))
    yield Made(Path(flow.folder, "models", name, "preflight.json"), looked_at)
    before, evaluate = settings, flow.evaluate(one)
    original = settings | stamp("evaluate", settings)
    settings |= stamp("attribute", settings) | said_of(flow.attribute(one))
    for shard, array, path in zip(flow.shards, images, scores, strict=True):
        read = {"images": [array]} | flow.attribute(one).files()
        yield Made(path, settings | {"shard": shard}, read)
    attributed = settings
    yield from _made_randomised(flow, one, before, images, scores)
    settings = settings | stamp("mask", settings) | said_of(flow.mask(one))
    masks_of = dict(zip(flow.study.selection.p, map(Path, flow.masks(one)), strict=True))
    for p, masks in masks_of.items():
        yield Made(masks, settings | {"p": p}, {"scores": scores})
    of_all_p = {key: value for key, value in settings.items() if key != "p"}
    if flow.study.statistics.converged:
        yield from _made_converged(flow, one, of_all_p, list(masks_of.values()))
    if flow.study.statistics.probe:
        said = of_all_p | stamp("probe", settings) | said_of(flow.probe(one))
        probed = Path(flow.folder, "models", name, "probe.parquet")
        yield Made(probed, said, {"masks": list(masks_of.values())})
    settings |= stamp("evaluate", settings)
    read = {"images": images}
    for condition, records in zip(flow.conditions, flow.records(one), strict=True):
        said = evaluate.of_condition(condition)
        if condition.p is None:
            yield Made(Path(records), original | said, read | model.files())
        else:
            own = str(condition.fill), condition.mask
            applied = {"masks": [masks_of[condition.p]]} | model.files(*own)
            if condition.is_control:
                applied |= _ranked_by(flow, condition.mask, one, scores)
            yield Made(Path(records), settings | said, read | applied)
    made_of = attributed | stamp("evaluate", attributed)
    for curve, place in zip(flow.curves, flow.curve_files(one), strict=True):
        files = model.files(curve.fill, curve.mask)
        said = made_of | evaluate.of_curve(curve)
        ranked_by = _ranked_by(flow, curve.mask, one, scores)
        yield Made(Path(place), said, read | ranked_by | files)


def _made_converged(
    flow: Workflow, one: SimpleNamespace, settings: dict[str, Any], masks: list[Path]
) -> Iterator[Made]:
    """What is made of a model's converged attributions; `settings` are those of its masks."""
    recipe, place = flow.converge(one), Path(flow.folder, "models", one.model, "converged")
    said = settings | stamp("converge", settings) | said_of(recipe)
    yield Made(place / "agreement.parquet", said, {"masks": masks})
    for name in flow.converged_files():
        evaluated = {"name": one.model} | stamp("evaluate", settings)
        yield Made(place / "records" / name, evaluated)


def _made_transfers(flow: Workflow, one: SimpleNamespace, before: dict[str, Any]) -> Iterator[Made]:
    """The records of a model under other models' masks; `before` are prepared images' settings."""
    images, scores = ([Path(x) for x in paths] for paths in (flow.images(one), flow.scores(one)))
    for other in (other for name, other in flow.transfers if name == one.model):
        pair = SimpleNamespace(model=one.model, other=other)
        recipe, of_other = flow.transfer(pair), flow.attribute(SimpleNamespace(model=other))
        settings = before | stamp("attribute", before) | said_of(of_other)
        settings |= stamp("mask", settings) | said_of(flow.mask(pair))
        settings |= stamp("evaluate", settings)
        ps = flow.study.selection.p
        masks = dict(zip(ps, map(Path, flow.others_masks(pair)), strict=True))
        for condition, name in zip(recipe.conditions(ps), flow.transfer_files(other), strict=True):
            path = Path(flow.folder, "models", one.model, "of", other, name)
            read = {"images": images, "scores": scores, "masks": [masks[condition.p or 0]]}
            files = flow.models[one.model].files(str(condition.fill))
            yield Made(path, settings | recipe.of_condition(condition), read | files)


def _ranked_by(
    flow: Workflow, mask: str, one: SimpleNamespace, scores: list[Path]
) -> dict[str, list[Path]]:
    """The scores that a ranking is made of."""
    drawn = list(map(Path, flow.randomised_scores(one))) if mask == "randomised" else []
    return {"scores": scores} | ({"randomised": drawn} if drawn else {})


def _made_randomised(
    flow: Workflow,
    one: SimpleNamespace,
    before: dict[str, Any],
    images: list[Path],
    scores: list[Path],
) -> Iterator[Made]:
    """The files of the control `randomised`; `before` are the settings of prepared images."""
    paths = list(map(Path, flow.randomised_scores(one)))
    if not paths:
        return
    settings = stamp("randomise") | said_of(flow.randomise(one))
    yield Made(Path(flow.drawn_weights(one)), settings)
    recipe = flow.attribute_randomised(one)
    for shard, image, classes, path in zip(flow.shards, images, scores, paths, strict=True):
        settings = before | stamp("attribute", before) | said_of(recipe) | {"shard": shard}
        yield Made(path, settings, {"images": [image], "classes": [classes]} | recipe.files())
