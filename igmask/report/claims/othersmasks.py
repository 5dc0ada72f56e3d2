"""Other masks in the place of a network's own: those of other networks, and converged ones."""

from typing import Any

import pandas as pd

from igmask.asked.recipes import CONVERGED, network_of
from igmask.asked.settings import percent
from igmask.report.rightness import RIGHTNESS


def tables(results: Any, p: str) -> dict[int, tuple[str, pd.DataFrame, str]]:
    """Return {number: (title, table of texts, note)} of Tables 8 and 9, where there are such masks.

    results: `tables.Results`
    p:       of Table 8, as text
    """
    found, others = {}, set(results.accuracy["mask"].map(network_of).dropna())
    if others - {CONVERGED}:
        title = f"keep {p} / drop {p} of each network's masks"
        found[8] = title, _across(results.accuracy, p), _ACROSS
    if CONVERGED in others:
        title = "under the study's masks and under converged ones"
        found[9] = title, _converged(results), _CONVERGED
    return found


_ACROSS = (
    "a row for each network that is asked, a column for each whose masks it is shown; its own are "
    "those of the other tables; networks of another input size have other squares, and are left out"
)


def _across(accuracy: pd.DataFrame, p: str) -> pd.DataFrame:
    """Table 8: networks, and the networks whose masks they are shown."""
    several = accuracy["fill"].dropna().nunique() > 1
    cells: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in accuracy[accuracy["p"] == p].itertuples():
        of = row.model if row.mask == "selection" else network_of(row.mask)
        if of and of != CONVERGED:
            key = (row.model, row.fill if several else "")
            cells.setdefault(key, {}).setdefault(of, {})[row.mode] = f"{row.top1:.1f}"
    names = list(dict.fromkeys(accuracy["model"]))
    rows = [
        {f"masks of {name}": " / ".join(of.get(name, {}).values()) for name in names}
        for of in cells.values()
    ]
    index = pd.MultiIndex.from_tuples(list(cells), names=["model", ""])
    return pd.DataFrame(rows, index=index)


_CONVERGED = (
    "of some images, drawn: with the masks of the study, and with those of attributions "
    "from 400 steps placed where the output changes; IoU: intersection over union of the two, mean"
)


def _converged(results: Any) -> pd.DataFrame:
    """Table 9: of the images that have converged masks what is right under either."""
    several = results.accuracy["fill"].dropna().nunique() > 1
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for name, one in results.models.items():
        right = one.right
        for condition in one.in_order:
            if network_of(condition.mask) != CONVERGED:
                continue
            own = condition._replace(mask="selection")
            there = right[condition.name].notna()
            title = f"{name}, {condition.fill}" if several else name
            column = f"{condition.mode} {percent(condition.p or 0)} %"
            quantity = RIGHTNESS[one.truth].quantity
            said = {
                quantity: right.loc[there, own.name],
                "converged": right.loc[there, condition.name],
            }
            texts = {key: f"{100 * of.mean():.1f}" for key, of in said.items()}
            texts["IoU"] = f"{results.agreement[name, percent(condition.p or 0)]:.3f}"
            for key, text in (texts | {"n": str(there.sum())}).items():
                cells.setdefault((title, key), {})[column] = text
    wide = pd.DataFrame(list(cells.values())).fillna("")
    wide.index = pd.MultiIndex.from_tuples(list(cells), names=["model", ""])
    return wide
