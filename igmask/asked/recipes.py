"""A recipe a step: all that its result depends on besides the files that it reads.

From its fields derive the words of the step's job, which Snakemake compares (`words`), the options
of its command (cli/options.py), the step's argument, and what its files say of their making
(`made_by`), which `igmask verify` compares.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from igmask.asked.fields import counting, counting_fields, given
from igmask.asked.masking import is_drawn
from igmask.asked.settings import (
    Attribution,
    Geometry,
    Model,
    is_baseline_file,
    percent,
    rules,
)

# The algorithm of each step; raise a number when a step's results change.
STAGES = {
    "train": 3,
    "index": 2,
    "preflight": 2,
    "prepare": 3,
    "attribute": 4,
    "randomise": 2,
    "mask": 3,
    "evaluate": 7,
    "probe": 1,
    "converge": 1,
}


def of(*path: str, **said: Any) -> Any:
    """Return the field of a recipe that takes a setting, such as of("squares", "side").

    said: `word`, what the command calls it, and `made_by`, what files do, if not as the field;
          `text`, of a value, if it is not str; `counts`, the recipe → whether it matters there
    """
    default = rules(*path)["default"]
    value = tuple(default) if isinstance(default, list) else default
    return field(default=value, metadata={"path": path} | said)


@dataclass(frozen=True)
class Train:
    """Of the weights of a demo model."""

    model: Model
    n_train: int = of("dataset", "n_train")
    seed: int = of("seed")


@dataclass(frozen=True)
class Index:
    """Of the list of a dataset's images.

    dataset: the settings that are given, as `given` has them
    seed:    of drawn images
    """

    dataset: dict[str, Any]
    seed: int = of("seed", counts=lambda one: one.dataset["source"] == "demo")


@dataclass(frozen=True)
class Preflight:
    """Of the look at a model before work begins.

    own:      functions of the user's own that other steps will need
    fills, controls: those among them that are tried on the first images
    maps:     the folder of ready attributions, of which every image has to have one
    score:    as which ready numbers of squares have to keep their order
    """

    model: Model
    baseline: str = of("attribution", "baseline")
    own: tuple[str, ...] = ()
    fills: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    side: int = of("squares", "side", counts=lambda one: bool(one.controls or one.maps))
    maps: str | None = of("attribution", "maps", counts=lambda one: one.maps is not None)
    score: str = of("squares", "score", counts=lambda one: one.maps is not None)


@dataclass(frozen=True)
class Prepare:
    """Of a shard's decoded images."""

    geometry: Geometry
    shard: str = "1-of-1"
    on_bad_image: str = of("dataset", "on_bad_image")


@dataclass(frozen=True)
class Attribute:
    """Of the parts of squares' scores; the seed is that of noise baselines."""

    model: Model
    attribution: Attribution
    side: int = of("squares", "side")
    seed: int = of(
        "seed",
        made_by="baseline_seed",
        counts=lambda one: one.attribution.is_drawn,
    )

    @property
    def own(self) -> tuple[str, ...]:
        """What may be a function of the user's own."""
        return self.attribution.method, self.attribution.baseline

    def files(self) -> dict[str, list[Path]]:
        """What it is made of besides images: weights, code, a baseline, as far as they are here."""
        baseline = self.attribution.baseline
        files = {"baseline": [Path(baseline)]} if is_baseline_file(baseline) else {}
        return self.model.files(*self.own) | files


@dataclass(frozen=True)
class Randomise:
    """Of the weights of a network of which nothing was learnt."""

    model: Model
    seed: int = of("seed")


@dataclass(frozen=True)
class Mask:
    """Of the masks of every p."""

    p: tuple[float, ...] = of("selection", "p", text=percent)
    by: str = of("selection", "by")
    score: str = of("squares", "score")


@dataclass(frozen=True)
class Probe:
    """Of the classes that a linear classifier reads from masks; the seed is that of its folds.

    name: what the tables call the model
    """

    name: str = "model"
    seed: int = of("seed", made_by="probe_seed")


STUDIED = ("none", "selection")  # masks that are the study's own, no control's
CONVERGED = "converged"  # whose masks those of converged attributions are, as if of a network
_OF = "of-"  # and the name of a network, whose masks another one is shown


def network_of(mask: str) -> str | None:
    """Return the other network whose masks these are, if they are."""
    return mask.removeprefix(_OF) if mask.startswith(_OF) else None


def _file_name(*parts: str, mask: str) -> str:
    """A name for files, with that of the mask if it is a control's."""
    of_control = [mask] * (mask not in STUDIED)
    return "-".join([*parts, *of_control]).replace(":", "-")  # of one's own, module:callable


class Condition(NamedTuple):
    """How images are shown to a network: as they are, or masked.

    mask: `none`, `selection`, the name of a control, or of-NAME, the selection of another network
    """

    mode: str
    p: float | None = None
    fill: str | None = None
    mask: str = "none"

    @property
    def is_control(self) -> bool:
        """Whether another mask of its area stands in the place of the selection."""
        return self.mask not in STUDIED and network_of(self.mask) is None

    @property
    def name(self) -> str:
        """A name for files: original, keep-50-black, keep-50-black-random."""
        if self.p is None:
            return self.mode
        return _file_name(self.mode, percent(self.p), str(self.fill), mask=self.mask)


def shown_masks_of(condition: Condition, network: str) -> Condition:
    """Return the condition with the masks of another network."""
    return condition._replace(mask=f"{_OF}{network}")


QUANTITIES = ("area_kept", "probability", "correct", "agreement")  # of a point of a curve


class Curve(NamedTuple):
    """Masks of every size, in the order of a ranking: the selection's, or that of a control."""

    mode: str
    fill: str
    mask: str = "selection"

    @property
    def name(self) -> str:
        """A name for files: keep-black, keep-black-random."""
        return _file_name(self.mode, self.fill, mask=self.mask)


@dataclass(frozen=True)
class Evaluate:
    """Of the records of every condition, and of every curve.

    name:   what the tables call the model; its source if None
    draws:  of each image, by control random
    points: of each curve
    score:  of the squares' ranking
    seed:   of the controls and fills that are drawn
    masks_of: another network by its name, whose masks it is shown, and nothing else
    """

    model: Model
    name: str | None = None
    modes: tuple[str, ...] = of("masking", "modes", word="mode")
    fills: tuple[str, ...] = of("masking", "fills", word="fill")
    controls: tuple[str, ...] = of("masking", "controls", word="control")
    draws: int = of("masking", "draws", counts=lambda one: "random" in one.controls)
    blur_sigma: float = of("masking", "blur_sigma", counts=lambda one: "blur" in one.fills)
    points: int = of("curves", "points")
    score: str = of("squares", "score")
    seed: int = of("seed", counts=lambda one: any(map(is_drawn, (*one.fills, *one.controls))))
    masks_of: str | None = None

    @property
    def own(self) -> tuple[str, ...]:
        """What of masked conditions may be a function of the user's own."""
        return *self.fills, *self.controls

    def conditions(self, ps: Iterable[float]) -> Iterator[Condition]:
        """Yield the conditions of masks of some p: those of the selections, then of each control.

        The originals come first; with masks of another network there is nothing else.
        """
        masks, ps = ("selection", *self.controls), tuple(ps)
        if self.masks_of is None:
            yield Condition("original")
        else:
            masks = (f"{_OF}{self.masks_of}",)
        for mask, mode, p, fill in product(masks, dict.fromkeys(self.modes), ps, self.fills):
            yield Condition(mode, p, fill, mask)

    def of_condition(self, condition: Condition) -> dict[str, Any]:
        """Return what the records of a condition say of their making."""
        draws = {"draws": self.draws} if condition.mask == "random" else {}
        return self._of(condition.mask, condition.fill) | condition._asdict() | draws

    def curves(self) -> Iterator[Curve]:
        """Yield the curves; of random squares one mode does, since either keeps random squares."""
        modes = tuple(dict.fromkeys(self.modes))
        for mask in ("selection", *self.controls) if self.points and not self.masks_of else ():
            yield from (
                Curve(mode, fill, mask)
                for mode, fill in product(modes[:1] if mask == "random" else modes, self.fills)
            )

    def of_curve(self, curve: Curve) -> dict[str, Any]:
        """Return what a curve says of its making."""
        own = {"points": self.points, "score": self.score}
        return self._of(curve.mask, curve.fill) | curve._asdict() | own

    def _of(self, mask: str, fill: str | None) -> dict[str, Any]:
        own: dict[str, Any] = {"name": self.name or self.model.source}
        own["model"] = counting(self.model)
        if is_drawn(mask):
            own["control_seed"] = self.seed
        if is_drawn(str(fill)):
            own["fill_seed"] = self.seed
        return own | ({"blur_sigma": self.blur_sigma} if fill == "blur" else {})


@dataclass(frozen=True)
class Converge:
    """Of the masks of converged attributions, of some images."""

    model: Model
    attribution: Attribution
    name: str = "model"
    side: int = of("squares", "side")
    score: str = of("squares", "score")
    by: str = of("selection", "by")
    modes: tuple[str, ...] = of("masking", "modes", word="mode")
    fills: tuple[str, ...] = of("masking", "fills", word="fill")
    fill_blur_sigma: float = of("masking", "blur_sigma", counts=lambda one: "blur" in one.fills)
    n_images: int = of("statistics", "converged")
    seed: int = of("seed")

    @property
    def own(self) -> tuple[str, ...]:
        """What may be a function of the user's own."""
        return self.attribution.baseline, *self.fills


@dataclass(frozen=True)
class Tables:
    """Of the tables; the seed is that of the images that are drawn anew."""

    family: tuple[str, ...] = of("statistics", "family")
    replicates: int = of("statistics", "replicates")
    seed: int = of("seed")


@dataclass(frozen=True)
class Examples:
    """Of the pictures of a model's images."""

    model_name: str
    n_images: int = of("figures", "n_images")
    formats: tuple[str, ...] = of("figures", "formats", word="format")


@dataclass(frozen=True)
class Curves:
    """Of the plots of accuracy."""

    formats: tuple[str, ...] = of("figures", "formats", word="format")


@dataclass(frozen=True)
class Gallery:
    """Of a model's images on the page of the study."""

    model_name: str
    n_gallery: int = of("figures", "n_gallery")


@dataclass(frozen=True)
class Page:
    """Of the page of the study.

    study: its configuration, but for what changes nothing that the page says
    """

    study: dict[str, Any]


def words(recipe: Any, **more: Any) -> list[str]:
    """Return the words of a recipe for the command line, in a fixed order, and no others.

    What is None, and what does not count beside other settings, is left out.

    more: options that come first
    """
    found = option_words(more)
    for one in counting_fields(recipe):
        value = getattr(recipe, one.name)
        if isinstance(value, Attribution | Geometry):
            found += option_words(counting(value))
        else:
            text = one.metadata.get("text", _text)
            found += option_words({one.metadata.get("word", one.name): value}, text)
    return found


def option_words(options: Mapping[str, Any], text: Callable[[Any], str] | None = None) -> list[str]:
    """Return options as words, one of a list after the other; None is left out."""
    found = []
    for name, value in options.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is not None:
                found += [f"--{name.replace('_', '-')}", (text or _text)(item)]
    return found


def _text(value: Any) -> str:
    if isinstance(value, Model):
        value = given(value)
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    return str(value)


def made_by(recipe: Any) -> dict[str, Any]:
    """Return what the files of a recipe say of it: what counts there."""
    found = {}
    for one in counting_fields(recipe):
        value = getattr(recipe, one.name)
        if isinstance(value, Attribution | Geometry | Model):
            value = counting(value)
        if value is not None:
            found[one.metadata.get("made_by", one.name)] = value
    return found


def records_of(array_path: Path) -> Path:
    """Return the path of the records beside an array: x.npy → x.parquet."""
    return array_path.with_suffix(".parquet")


def stamp(step: str, *before: Mapping[str, Any]) -> dict[str, Any]:
    """Return what files say of their making: the step, and the version of each step so far.

    before: the settings of what they are made of
    """
    versions: dict[str, int] = {}
    for made_by in before:
        versions |= made_by.get("versions", {})
    return {"step": step, "versions": versions | {step: STAGES[step]}}
