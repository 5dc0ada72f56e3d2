"""Records → Tables 1, 2, 3, and accuracy.csv, their long form; and all other tables of a study.

Table 1 has each model's accuracy on the original images and on those that keep the top p %;
Table 2 on those that drop it; Table 3 sets keep 50 beside drop 50.
"""

import html
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from igmask import arrays
from igmask.asked.masking import middle
from igmask.asked.recipes import STUDIED, Tables, network_of
from igmask.asked.settings import percent
from igmask.inputs.chance import by_luck, wilson
from igmask.inputs.classes import NO_LABEL, class_name
from igmask.inputs.data import is_labelled, unnamed_classes
from igmask.report import areas
from igmask.report.claims import collapse, comparisons, othersmasks
from igmask.report.claims.outcomes import Outcomes
from igmask.report.published import CITATION, published_top1
from igmask.report.rightness import RIGHTNESS, TOP, truth
from igmask.steps.masked.controls import control_of

COLUMNS = [
    "model", "mode", "p", "fill", "mask", "n", "top1", "ci_low", "ci_high", "area_kept",
    "published_top1", "published_low", "published_high", "most_frequent_prediction",
    "most_frequent_share", "entropy", "entropy_share", "top1_balanced", "top1_of_right",
    "from_mask", "from_number", "chance", "blank_predicted", "blank_probability", "condition",
    "truth", "n_classes",
]  # fmt: skip

_PUBLISHED = ("published_top1", "published_low", "published_high")

_TOLD = {"name", "label", "draw", "predicted", "correct", "area_kept"}  # of the records, above

_METHODS = {
    "integrated-gradients": "Integrated Gradients",
    "gradient": "Gradient",
    "gradient-x-input": "Gradient × input",
    "smoothgrad": "SmoothGrad",
    "expected-gradients": "Expected gradients",
    "random": "Random attribution",
    "maps": "Ready attributions",
}

_LONG_FORMS = ("accuracy.csv", "curves.csv", "areas.csv", "comparisons.csv", "classes.csv")

_LONGEST_NAME = 16  # letters of a class in a column

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .2em .9em; text-align: right }
th { font-weight: 600 } tbody th { text-align: left; font-weight: 400 } td { white-space: nowrap }
thead tr { border-bottom: 2px solid #222 }
tbody th[rowspan] { font-weight: 600; vertical-align: top }
.note { color: #555; font-size: .9em }
"""


@dataclass(frozen=True)
class Results:
    """A study's results.

    accuracy: one row a model and condition, whose mask is `none`, `selection` or a control's name,
              columns `COLUMNS`, all but entropy (bits) and entropy_share in percent, and the mean
              of every other metric of the records, in its own unit
    notes:    what belongs under every table
    models:   what became of each image, by the model's name
    classes:  a row a model, condition and class: `collapse.of_classes`
    agreement: by (model, p), the mean IoU of masks with converged ones
    by:        how squares were selected
    """

    accuracy: pd.DataFrame
    notes: list[str]
    models: dict[str, Outcomes] = field(default_factory=dict)
    classes: pd.DataFrame = field(default_factory=pd.DataFrame)
    agreement: dict[tuple[str, str], float] = field(default_factory=dict)
    by: str = "mass"


def collect(record_paths: Iterable[Path]) -> Results:
    """Return the results in the records of all models and conditions, models in given order.

    What linear classifiers read from masks, of `igmask probe`, may be among them.
    """
    rows: list[dict[str, Any]] = []
    notes: dict[str, dict[str, Any]] = {}
    rankless: set[tuple[str, str]] = set()
    models: dict[str, Outcomes] = {}
    said: dict[tuple[str, str], np.ndarray] = {}
    read: dict[tuple[str, str], dict[str, float]] = {}
    agreement: dict[tuple[str, str], float] = {}
    for path in record_paths:
        records, made_by = arrays.read_records_of(path, "evaluate", "converge", "probe")
        name = made_by["name"]
        if made_by["step"] == "converge":
            means = records.groupby("p")["iou"].mean()
            agreement |= {(name, percent(p)): float(of) for p, of in means.items()}
            continue
        if made_by["step"] == "probe":
            read |= {(name, p): of for p, of in _read_from_masks(records).items()}
            continue
        if records.empty:  # a control that has no ranking of any image
            rankless.add((name, made_by["mask"]))
            continue
        rows.append(_row(records, made_by))
        condition = models.setdefault(name, Outcomes(name)).add(records, made_by)
        said[name, condition] = np.bincount(records["predicted"])
        rows[-1]["condition"] = condition
        if made_by["mode"] == "original" and is_labelled(made_by):
            answers, labels = (records[key].to_numpy() for key in ("predicted", "label"))
            made_by["by_luck"] = by_luck(answers, labels, made_by["n_classes"])
        if network_of(made_by["mask"]) is None:
            notes.setdefault(name, {}).update(made_by)
    for outcomes in models.values():
        outcomes.check()
    rows.sort(key=partial(_place, list(notes)))
    for row in rows:
        if row["mask"] == "selection":
            row |= read.get((row["model"], row["p"]), {})
    metrics = dict.fromkeys(name for row in rows for name in row if name not in COLUMNS)
    accuracy = pd.DataFrame(rows, columns=[*COLUMNS, *metrics])
    collapse.add(accuracy, models, {name: of["n_classes"] for name, of in notes.items()})
    names = {name: of["class_names"] for name, of in notes.items()}
    classes = collapse.of_classes(said, models.values(), names)
    left_out = [f"{name}: {mask} has a ranking of no image" for name, mask in sorted(rankless)]
    by = next((of["by"] for of in notes.values() if "by" in of), Results.by)
    return Results(accuracy, _notes(notes, accuracy) + left_out, models, classes, agreement, by)


def _place(models: list[str], row: dict[str, Any]) -> tuple[Any, ...]:
    """Where a row has its place among all, whatever the order of files."""
    p = float(row["p"] or 0)
    of_condition = areas.condition_in_order(row["mode"], p, row["fill"], row["mask"])
    return models.index(row["model"]), *of_condition


def tables(paths: Iterable[Path], *, output: Path, recipe: Tables | None = None) -> None:
    """Write accuracy.csv, and table1 … table3 as .csv, .md, .html and .tex, to a folder.

    And comparisons.csv and table6, classes.csv and table7; of curves, if there are any, curves.csv,
    areas.csv, table4 and table5, too.

    paths:  records and curves of all conditions, or folders that hold them, and those of `probe`
    raises  InputError if the recipe's family names a condition that there is not
    """
    found = texts(paths, recipe)
    for name, text in found.items():
        arrays.write_text(output / name, text)
    # Of curves and other networks, say, that the study has no more: they would pass for its own.
    for path in [*output.glob("table[0-9].*"), *(output / name for name in _LONG_FORMS)]:
        if path.name not in found:
            path.unlink(missing_ok=True)


def texts(paths: Iterable[Path], recipe: Tables | None = None) -> dict[str, str]:
    """Return {name: text} of the files that `tables` writes."""
    found, recipe = arrays.files_in(paths, "*.parquet", "*.npy"), recipe or Tables()
    curves = [path for path in found if path.suffix == ".npy"]
    beside = {arrays.records_of(path) for path in curves}
    results = collect(path for path in found if path not in {*curves, *beside})
    of_curves = areas.texts(curves, render, recipe) if curves else {}
    return _of_records(results) | of_curves | _compared(results, recipe)


def _of_records(results: Results) -> dict[str, str]:
    found = {"accuracy.csv": results.accuracy.round(4).to_csv(index=False)}
    accuracy = results.accuracy[results.accuracy["mask"].map(network_of).isna()]
    mode = accuracy["mode"]
    squares = f"the squares with the top p % of {TOP[results.by]}"
    ps = accuracy["p"].dropna().astype(float)
    p = percent(middle(ps)) if len(ps) else ""
    shown = {
        f"keeping {squares}": accuracy[mode.isin(["original", "keep"])],
        f"dropping {squares}": accuracy[mode.isin(["original", "drop"])],
        f"keep {p} beside drop {p}": accuracy[accuracy["p"] == p],
    }
    right = RIGHTNESS[accuracy["truth"].iloc[0]]
    for number, (says, rows) in enumerate(shown.items(), start=1):
        found |= _table(number, widen(rows), f"{right.title}, {says}", results.notes)
    chosen = accuracy[accuracy["mask"].isin(STUDIED)]
    wide = widen(chosen, collapse.cell, list(collapse.QUANTITIES.values()))
    says = f"{right.title}: collapse to few answers, and classes read from masks"
    found |= _table(7, wide, says, [collapse.NOTE, *results.notes[1:]])
    for number, (says, wide, note) in othersmasks.tables(results, p).items():
        found |= _table(number, wide, f"{right.title}, {says}", [note, *results.notes[1:]])
    return found | {"classes.csv": results.classes.round(4).to_csv(index=False)}


def _compared(results: Results, recipe: Tables) -> dict[str, str]:
    """Comparisons, and Table 6."""
    models = results.models.values()
    found = comparisons.collect(
        models, recipe.family, replicates=recipe.replicates, seed=recipe.seed
    )
    says = f"{RIGHTNESS[results.accuracy['truth'].iloc[0]].title}, differences"
    csv = {"comparisons.csv": found.rows.round(4).to_csv(index=False)}
    return csv | _table(6, comparisons.shown(found, models), says, found.notes)


def _table(number: int, wide: pd.DataFrame, says: str, notes: list[str]) -> dict[str, str]:
    """The files of a table, by their names."""
    rendered = render(wide, title=f"Table {number}. {says}", notes=notes)
    return {f"table{number}.{kind}": text for kind, text in rendered.items()}


def widen(
    accuracy: pd.DataFrame,
    cell: Callable[[Any], dict[str, str]] | None = None,
    order: list[str] | None = None,
) -> pd.DataFrame:
    """Return a table of texts: a block of rows a model (and fill), a column a condition.

    cell:  what a row of `accuracy` puts into its column: quantity → text; `order` lists them
    """
    several_fills = accuracy["fill"].dropna().nunique() > 1
    blocks: dict[tuple[str, str], dict[str, str]] = {}
    for row in accuracy.itertuples():
        column = "original" if row.mode == "original" else f"{row.mode} {row.p} %"
        fills = accuracy["fill"].dropna().unique() if row.mode == "original" else [row.fill]
        for fill in fills if len(fills) else [None]:
            name = f"{row.model}, {fill}" if several_fills else row.model
            for quantity, text in (cell or _cell)(row).items():
                blocks.setdefault((name, quantity), {})[column] = text
    names, order = list(dict.fromkeys(name for name, _ in blocks)), order or _quantities(accuracy)
    keys = [(name, quantity) for name in names for quantity in order]
    keys = [key for key in keys if key in blocks]
    wide = pd.DataFrame([blocks[key] for key in keys]).fillna("")
    wide.index = pd.MultiIndex.from_tuples(keys, names=["model", ""])
    return wide


def render(wide: pd.DataFrame, *, title: str, notes: list[str]) -> dict[str, str]:
    """Return the table as csv, md, html and tex, all but csv with title and notes."""
    flat = wide.reset_index().rename(columns={"": "quantity"})
    shown = flat.assign(model=flat["model"].where(flat["model"] != flat["model"].shift(), ""))
    shown = shown.rename(columns={"quantity": ""})
    aligned = ("left", "left", *["right"] * (shown.shape[1] - 2))
    markdown = shown.to_markdown(index=False, colalign=aligned, disable_numparse=True)
    listed = "\n".join(f"- {note}" for note in notes)
    paragraphs = "\n".join(f'<p class="note">{html.escape(note)}</p>' for note in notes)
    latex = wide.to_latex(
        escape=True, multirow=False, column_format="ll" + "r" * wide.shape[1], sparsify=True
    )
    latex_notes = "\n".join(rf"\par\footnotesize {_latex(note)}" for note in notes)
    return {
        "csv": flat.to_csv(index=False),
        "md": f"**{title}**\n\n{markdown}\n\n{listed}\n",
        "html": f'<!doctype html>\n<html lang="en"><meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n{wide.to_html(border=0)}\n{paragraphs}\n</html>\n",
        "tex": f"\\begin{{table}}\n\\centering\n\\caption{{{_latex(title)}}}\n"
        f"{latex}{latex_notes}\n\\end{{table}}\n",
    }


def _row(records: pd.DataFrame, made_by: dict[str, Any]) -> dict[str, Any]:
    """What is said of a condition; of several draws of an image their mean."""
    original = made_by["mode"] == "original"
    n_draws = made_by.get("draws", 1)
    n = len(records) // n_draws
    n_correct = int(records["correct"].sum()) / n_draws
    low, high = wilson(n_correct, n)
    most, share, entropy = _predictions(records["predicted"].to_numpy())
    row = {
        "model": made_by["name"],
        "mode": made_by["mode"],
        "p": None if original else percent(made_by["p"]),
        "fill": None if original else made_by["fill"],
        "mask": made_by["mask"],
        "n": n,
        "top1": 100 * n_correct / n,
        "ci_low": low,
        "ci_high": high,
        "area_kept": 100 * records["area_kept"].mean(),
        "truth": truth(made_by),
        "n_classes": made_by["n_classes"] if is_labelled(made_by) else None,
        "most_frequent_prediction": class_name(made_by["class_names"], most),
        "most_frequent_share": share,
        "entropy": entropy,
    }
    metrics = [name for name in records if name not in _TOLD]
    row |= {f"mean_{name}": records[name].mean() for name in metrics}
    if made_by["mask"] not in STUDIED:
        return row
    if is_labelled(made_by):
        published = published_top1(made_by, n_images=n + len(made_by["skipped"]))
        row |= dict(zip(_PUBLISHED, published, strict=True)) if published else {}
    if blank := made_by.get("blank"):
        row["blank_predicted"] = class_name(made_by["class_names"], blank["class"])
        row["blank_probability"] = 100 * blank["probability"]
    return row


def _read_from_masks(records: pd.DataFrame) -> dict[str, dict[str, float]]:
    """How often the class was read from masks, and from their size, in percent, by p."""
    found = {}
    for p, of in records.groupby("p"):
        share = of["label"].value_counts(normalize=True).max()
        read = {
            name: 100 * (of[name] == of["label"]).mean() for name in ("from_mask", "from_number")
        }
        if (of["from_mask"] != NO_LABEL).all():
            found[percent(p)] = read | {"chance": 100 * share}
    return found


def _predictions(predicted: np.ndarray) -> tuple[int, float, float]:
    """The class predicted most often, its share in percent, and the predictions' entropy in bits.

    H = −Σ_c q_c log₂ q_c of the shares q_c (Shannon 1948): 0 where all predictions are one class.
    """
    classes, counts = np.unique(predicted, return_counts=True)
    shares = counts / len(predicted)
    entropy = abs(float(shares @ np.log2(shares)))
    return int(classes[counts.argmax()]), 100 * float(shares.max()), entropy


def _quantities(accuracy: pd.DataFrame) -> list[str]:
    """The rows of a model's block, in order."""
    controls = [mask for mask in accuracy["mask"].unique() if mask not in STUDIED]
    return [
        *(RIGHTNESS[accuracy["truth"].iloc[0]].quantity, "95 % interval", "area kept"),
        *(f"{control} {what}" for control in controls for what in ("squares", "area")),
        *("most frequent prediction", "its share", "entropy", "published", "its interval", "n"),
    ]


def _cell(row: Any) -> dict[str, str]:
    """What a row of `accuracy` puts into a column of a model's block: quantity → text."""
    if row.mask not in STUDIED:
        return {
            f"{row.mask} squares": f"{row.top1:.1f}",
            f"{row.mask} area": f"{row.area_kept:.1f}",
        }
    name = row.most_frequent_prediction
    cell = {
        RIGHTNESS[row.truth].quantity: f"{row.top1:.1f}",
        "95 % interval": f"{row.ci_low:.1f}–{row.ci_high:.1f}",
        "area kept": f"{row.area_kept:.1f}",
        "most frequent prediction": (
            name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
        ),
        "its share": f"{row.most_frequent_share:.1f}",
        "entropy": f"{row.entropy:.2f}",
        "n": str(row.n),
    }
    if not pd.isna(row.published_top1):
        cell["published"] = f"{row.published_top1:.2f}"
        cell["its interval"] = f"{row.published_low:.2f}–{row.published_high:.2f}"
    return cell


def _notes(made_by: dict[str, dict[str, Any]], accuracy: pd.DataFrame) -> list[str]:
    right = RIGHTNESS[accuracy["truth"].iloc[0]]
    controls = "".join(
        f"{name} squares: {right.quantity} with {control_of(name).is_of}; {name} area: the area "
        "kept with those; "
        for name in accuracy["mask"].unique()
        if name not in STUDIED and network_of(name) is None
    )
    notes = [
        f"{right.quantity}: {right.means}; 95 % interval: Wilson's; area kept: pixels left as they "
        f"were, in %, mean over the images; {controls}its share: of all predictions, in %; "
        "entropy: of the predicted classes, in bits, 0 if all are the same; n: images"
    ]
    notes += [f"{name} {of['by_luck'][1]}" for name, of in made_by.items() if of.get("by_luck")]
    if accuracy["published_top1"].notna().any():
        notes.append(CITATION)
    notes += [f"{name}: {_said(of)}" for name, of in made_by.items() if "attribution" in of]
    blanks = accuracy.dropna(subset="blank_predicted").drop_duplicates(["model", "fill"])
    for row in blanks.itertuples():
        notes.append(
            f"{row.model} predicts {row.blank_predicted} of an image all masked, fill {row.fill}, "
            f"with a probability of {row.blank_probability:.1f} %"
        )
    notes += _left_out(accuracy)
    unnamed = {name: unnamed_classes(of, of["n_classes"]) for name, of in made_by.items()}
    notes += [f"{name} {note}" for name, note in unnamed.items() if note]
    skipped = {name: reason for of in made_by.values() for name, reason in of["skipped"]}
    if skipped:
        listed = "; ".join(f"{name} ({reason})" for name, reason in sorted(skipped.items()))
        notes.append(f"{len(skipped)} images were skipped: {listed}")
    return notes


def _left_out(accuracy: pd.DataFrame) -> list[str]:
    """The images of which a control has no ranking, a line a control."""
    masked = accuracy[(accuracy["mode"] != "original") & accuracy["mask"].map(network_of).isna()]
    most = masked.groupby("model", sort=False)["n"].max()
    least = masked.groupby(["model", "mask"], sort=False)["n"].min()
    return [
        f"{model}: {mask} has no ranking of {most[model] - n} images, which its rows leave out"
        for (model, mask), n in least.items()
        if n < most[model]
    ]


def _said(made_by: dict[str, Any]) -> str:
    """How the squares of a model were attributed and selected."""
    asked, error = made_by["attribution"], made_by["completeness"]
    name = asked.get("method", "integrated-gradients")
    method = _METHODS.get(name, name)
    target = "label" if asked["target"] == "label" and is_labelled(made_by) else "predicted"
    of = f"{method} of the {target} class"
    if name == "integrated-gradients":
        of += (
            f"'s {asked['of']}, baseline {asked['baseline']}, rule {asked['rule']}, "
            f"m = {asked['n_steps']}"
            + (f", without steps below a slope of {asked['skip']:g}" if asked.get("skip") else "")
        )
    elif "n_samples" in asked:
        of += f"'s {asked['of']}, {asked['n_samples']} samples"
        of += f", noise {asked['noise']:g}" * (name == "smoothgrad")
    said = (
        f"{of}; {made_by['score']} scores of {made_by['side']}×{made_by['side']} squares, selected "
        f"by {made_by['by']}"
    )
    if error is None:
        return said
    left_out = error["n_without_change"]
    return (
        f"{said}; relative completeness error {error['median']:.3f} in the median, "
        f"{error['mean']:.3f} on average, at most {error['max']:.3g}"
        + (f", above 0.1 in {100 * error['share_above']:.0f} %" if "share_above" in error else "")
        + f" ({left_out} images without a change of f left out)" * (left_out > 0)
    )


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
