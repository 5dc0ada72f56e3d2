"""The settings of what is tested: as settings.py."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from igmask.asked.fields import setting
from igmask.asked.masking import CONTROLS, middle
from igmask.plain import FILLS, SCORES, SELECTIONS

_PAIR = r"^\S+ against \S+$"


@dataclass(frozen=True)
class Statistics:
    """How differences are judged.

    family:     the comparisons that are tested together, of each network, by the names of their
                records, such as keep-50-black against drop-50-black; their p-values are adjusted
                for their number (Holm); by default keep against drop at the p nearest to 50, under
                the first fill
    replicates: how often the images are drawn anew for an interval (bootstrap)
    probe:      whether a linear classifier tries to tell the class from the shape of the mask alone
    converged:  how many images are attributed with 400 placed steps, too, to see how far the
                study's masks are from converged ones; none by default
    """

    family: tuple[str, ...] = setting(
        (),
        uniqueItems=True,
        items={"type": "string", "pattern": _PAIR, "allowed": "CONDITION against CONDITION"},
    )
    replicates: int = setting(2000, minimum=100)
    probe: bool = True
    converged: int = setting(0, minimum=0)


@dataclass(frozen=True)
class Readings:
    """What the published text leaves open: `snakemake readings` computes every combination.

    of:        outputs that are attributed, as attribution.of
    target:    classes, as attribution.target
    baselines: where paths begin, as attribution.baseline
    score:     of a square, as squares.score
    by:        how squares are selected, as selection.by
    fills:     what masked pixels become, as masking.fills
    controls:  none, so that sentences are of accuracies; or a control of masking.controls, so that
               they are of what accuracies exceed its own by
    """

    of: tuple[str, ...] = setting(
        ("probability", "logit"), choices=("probability", "logit"), minItems=1, uniqueItems=True
    )
    target: tuple[str, ...] = setting(
        ("predicted",), choices=("predicted", "label"), minItems=1, uniqueItems=True
    )
    baselines: tuple[str, ...] = setting(("black",), minItems=1, uniqueItems=True)
    score: tuple[str, ...] = setting(
        ("positive", "absolute", "signed"),
        choices=SCORES,
        minItems=1,
        uniqueItems=True,
    )
    by: tuple[str, ...] = setting(
        ("mass", "count"), choices=SELECTIONS, minItems=1, uniqueItems=True
    )
    fills: tuple[str, ...] = setting(
        ("black",), choices=FILLS, own=True, minItems=1, uniqueItems=True
    )
    controls: tuple[str, ...] = setting(
        ("none",), choices=("none", *CONTROLS), own=True, minItems=1, uniqueItems=True
    )


def against(pair: str) -> tuple[str, str]:
    """Return the two names in "keep-50-black against drop-50-black"."""
    first, second = re.split(" against ", pair)
    return first, second


def in_vain(family: Iterable[str]) -> Iterator[str]:
    """Say which comparisons of a family are none, or there already: each would count as a test."""
    seen: set[frozenset[str]] = set()
    for pair in family:
        both = frozenset(against(pair))
        if len(both) < 2:
            yield f"statistics.family: {pair} compares a condition with itself"
        elif both in seen:
            yield f"statistics.family: {pair} is there twice, this way or the other"
        seen.add(both)


def family_of(conditions: Iterable[Any]) -> Sequence[str]:
    """Return the family where none is declared: keep against drop as Table 3 sets them.

    conditions: of a study, `recipes.Condition`
    """
    chosen = [one for one in conditions if one.mask == "selection"]
    ps = {mode: {one.p for one in chosen if one.mode == mode} for mode in ("keep", "drop")}
    if not (both := ps["keep"] & ps["drop"]):
        return ()
    p = middle(both)
    keep = next(one for one in chosen if (one.mode, one.p) == ("keep", p))
    return (f"{keep.name} against {keep._replace(mode='drop').name}",)
