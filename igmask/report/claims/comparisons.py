"""Two conditions side by side: how far apart, whether by chance → comparisons.csv and Table 6."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from igmask import arrays
from igmask.asked.masking import middle
from igmask.asked.recipes import CONVERGED, STUDIED, Condition, network_of
from igmask.asked.settings import percent
from igmask.asked.testing import against, family_of, in_vain
from igmask.errors import InputError, and_more, suggestion
from igmask.report.claims.outcomes import Outcomes
from igmask.report.rightness import RIGHTNESS
from igmask.statistics import bootstrap, paired

COLUMNS = [
    "model", "first", "second", "n", "top1_first", "top1_second", "difference", "ci_low", "ci_high",
    "bootstrap_low", "bootstrap_high", "first_only", "second_only", "log10_p", "log10_p_holm",
    "truth",
]  # fmt: skip


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of a study.

    rows:  one a comparison, `COLUMNS`; accuracies, differences and intervals in points
    notes: what belongs under the table
    """

    rows: pd.DataFrame
    notes: list[str]


def collect(
    models: Iterable[Outcomes], family: tuple[str, ...], *, replicates: int, seed: int
) -> Comparisons:
    """Compare, of each model, keep with drop and either with its controls, and what a family has.

    family: "keep-50-black against drop-50-black", …, of each model, whose p-values are adjusted
            together; if empty keep against drop at the p nearest to 50, under the first fill
    raises  InputError for a condition that there is not, or two that are there twice
    """
    models = list(models)
    rows: list[dict[str, Any]] = []
    told = family
    for problem in in_vain(family):
        raise InputError(problem)
    for one in models:
        conditions = one.in_order
        of_family = [against(name) for name in family or family_of(conditions)]
        told = told or tuple(" against ".join(two) for two in of_family)
        asked = list(dict.fromkeys([*_usual(conditions), *of_family]))
        found = compare(one, asked, replicates=replicates, seed=seed)
        for two, row in zip(asked, found, strict=True):
            rows.append(row | {"family": two in of_family})
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "family"])
    members = frame["family"].astype(bool)
    adjusted = paired.holm(frame.loc[members, "log10_p"] * math.log(10))
    frame.loc[members, "log10_p_holm"] = np.array(adjusted) / math.log(10)
    return Comparisons(frame[COLUMNS], _notes(models, told, int(members.sum()), replicates))


def compare(
    one: Outcomes, asked: list[tuple[str, str]], *, replicates: int, seed: int
) -> list[dict[str, Any]]:
    """Return a row for each two conditions of a model, by their names; `COLUMNS` but the family.

    Both intervals are of 95 %: Bonett & Price's (ci), where an image has one outcome under either
    condition, and that of the images drawn anew (bootstrap), where several draws are averaged, too.
    The test, and the counts of images that are right under one condition alone, are of first draws.

    raises InputError for a condition that there is not, or two that have no image in common
    """
    for name in dict.fromkeys(name for two in asked for name in two):
        if name not in one.conditions:
            raise InputError(
                f"{one.model}: there is no condition {name!r}{suggestion(name, one.conditions)}"
            )
    right, first = one.right, one.first
    of_two = {two: right[two[0]] - right[two[1]] for two in asked}
    differences = pd.DataFrame(of_two, index=right.index)
    drawn = bootstrap.replicates(differences, one.classes.to_numpy(), seed=seed, n=replicates)
    rows = []
    for two in asked:
        there = right[[*dict.fromkeys(two)]].notna().all(axis=1)
        if not there.any():
            raise InputError(f"{one.model}: {two[0]} and {two[1]} have no image in common")
        counts = paired.pairs(*(first.loc[there, name].to_numpy() == 1 for name in two))
        means = [100 * right.loc[there, name].mean() for name in two]
        single = all(one.n_draws[name] == 1 for name in two)
        interval = paired.interval(counts) if single else (np.nan, np.nan)
        around = bootstrap.interval(drawn[two])
        values = [
            one.model, *two, int(there.sum()), *means, means[0] - means[1],
            *(100 * bound for bound in (*interval, *around)), counts.first, counts.second,
            paired.log_mid_p(counts.first, counts.second) / math.log(10), np.nan, one.truth,
        ]  # fmt: skip
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def of_files(first: Path, second: Path, *, replicates: int, seed: int) -> list[str]:
    """Return lines that compare two files of records, of one network or two.

    raises InputError if they are not of the same images with the same labels, or if one says
           accuracy and the other agreement
    """
    both, images, rights, labels = Outcomes("records"), [], [], []
    for place, path in enumerate((first, second)):
        records, made_by = arrays.read_records_of(path, "evaluate")
        if records.empty:
            raise InputError(f"{path}: there are records of no image")
        both.add(records, made_by | {"mode": f"{place}", "p": None})
        images.append({*records["name"]})
        labels.append(records.set_index("name")["label"])
        rights.append(RIGHTNESS[both.truth])
    if rights[0] != rights[1]:
        raise InputError(f"{first} says {rights[0].quantity}, and {second} {rights[1].quantity}")
    if others := sorted(images[0] ^ images[1]):
        raise InputError(
            f"{first} and {second} are of other images: only one of them has {and_more(others)}"
        )
    if rights[0].quantity == RIGHTNESS["label"].quantity:
        own, other = (one[~one.index.duplicated()] for one in labels)
        if differ := [name for name in own.index if own[name] != other[name]]:
            name, more = differ[0], f"; {len(differ) - 1} more have others" * (len(differ) > 1)
            raise InputError(
                f"{name} has the label {own[name]} in {first} and {other[name]} in {second}{more}"
            )
    [found] = compare(both, [("0", "1")], replicates=replicates, seed=seed)
    return _said(SimpleNamespace(**found), (first, second), rights[0].quantity, replicates)


def _said(found: Any, paths: tuple[Path, Path], quantity: str, replicates: int) -> list[str]:
    single = not np.isnan(found.ci_low)
    p = paired.p_text(found.log10_p * math.log(10))
    intervals = [f"{between(found.ci_low, found.ci_high)} (Bonett & Price)"] * single
    around = between(found.bootstrap_low, found.bootstrap_high)
    intervals.append(f"{around} ({replicates:,} times as many images drawn anew)")
    return [
        f"{quantity} of {found.n:,} images, in %",
        f"  {found.top1_first:5.1f}  {paths[0]}",
        f"  {found.top1_second:5.1f}  {paths[1]}",
        f"difference {signed(found.difference)} points, 95 % interval {', '.join(intervals)}",
        f"right under the first alone {found.first_only:,}, under the second alone "
        f"{found.second_only:,}: McNemar's mid-p {p}" + ", of the first draws" * (not single),
    ]


def _usual(conditions: list[Condition]) -> Iterator[tuple[str, str]]:
    """Keep against drop, then either against each control, and other networks' masks."""
    chosen = [one for one in conditions if one.mask == "selection"]
    for keep in chosen:
        drop = keep._replace(mode="drop")
        if keep.mode == "keep" and drop in chosen:
            yield keep.name, drop.name
    for one in chosen:
        for control in conditions:
            if control.mask != one.mask and control._replace(mask="selection") == one:
                yield one.name, control.name


def shown(found: Comparisons, models: Iterable[Outcomes]) -> pd.DataFrame:
    """Return Table 6 as texts: the comparisons at the p nearest to 50, and those of the family."""
    conditions = {one.model: one.conditions for one in models}
    several = len({of.fill for one in conditions.values() for of in one.values() if of.fill}) > 1
    heads, cells = [], []
    for row in found.rows.itertuples():
        first, second = (conditions[row.model][name] for name in (row.first, row.second))
        ps = [of.p for of in conditions[row.model].values() if of.p is not None]
        if np.isnan(row.log10_p_holm) and first.p != middle(ps):
            continue
        name = f"{row.model}, {first.fill}" if several and first.fill else row.model
        heads.append((name, f"{_called(first)} − {_called(second, beside=first)}"))
        cells.append(_cells(row))
    wide = pd.DataFrame(cells).fillna("")
    wide.index = pd.MultiIndex.from_tuples(heads, names=["model", ""])
    return wide


def _cells(row: Any) -> dict[str, str]:
    single = not np.isnan(row.ci_low)
    low, high = (row.ci_low, row.ci_high) if single else (row.bootstrap_low, row.bootstrap_high)
    cells = {
        "difference": signed(row.difference),
        "95 % interval": between(low, high) + "°" * (not single),
        "right alone": f"{row.first_only} : {row.second_only}",
        "p": paired.p_text(row.log10_p * math.log(10)),
    }
    if not np.isnan(row.log10_p_holm):
        cells["p, Holm"] = paired.p_text(row.log10_p_holm * math.log(10))
    return cells


def signed(points: float) -> str:
    """Return points as tables have them: +1.2, −0.3, 0.0."""
    text = f"{points:+.1f}".replace("-", "−")
    return text[1:] if text[1:] == "0.0" else text


def between(low: float, high: float) -> str:
    """Return an interval in points: −1.0 … +2.5."""
    return f"{signed(low)} … {signed(high)}"


def _called(one: Condition, beside: Condition | None = None) -> str:
    """A condition in a table's words; of a control beside its selection the control alone."""
    if beside is not None and one != beside and one._replace(mask=beside.mask) == beside:
        other = network_of(one.mask)
        if other == CONVERGED:
            return "converged masks"
        return f"masks of {other}" if other else f"{one.mask} squares"
    name = one.mode if one.p is None else f"{one.mode} {percent(one.p)}"
    if beside is not None and one.fill != beside.fill:
        name += f", {one.fill}"
    return name if one.mask in STUDIED else f"{name} {one.mask}"


def _notes(
    models: list[Outcomes], family: tuple[str, ...], n_tests: int, replicates: int
) -> list[str]:
    if not models:
        return []
    right = RIGHTNESS[models[0].truth]
    listed = ", ".join(family)
    return [
        f"difference: of {right.quantity}, in points, over the images that both have; 95 % "
        "interval: of the difference (Bonett & Price 2012), or ° where several draws of a control "
        f"are averaged that of {replicates:,} times as many images drawn anew, of each class as "
        "many; comparisons.csv has both, of every p",
        "right alone: images that the network is right about under the first condition only, and "
        f"under the second only; p: McNemar's mid-p of these, two-sided, a test of "
        f"{right.quantity}, of several draws of the first",
        f"p, Holm: adjusted for the {n_tests} tests of the declared family, {listed}, of each "
        "network; all others are no tests of this study, and their p stands for itself",
    ]
