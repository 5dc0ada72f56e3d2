"""A study's tables and galleries → results/index.html, which needs no other file and no network."""

import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from igmask import arrays
from igmask.asked import config
from igmask.asked.masking import middle
from igmask.asked.recipes import Condition, network_of
from igmask.asked.settings import Study, percent
from igmask.errors import InputError, refusing
from igmask.report.claims.comparisons import between, signed
from igmask.report.page.plots import plots
from igmask.report.rightness import RIGHTNESS, TOP, Rightness

_PACKAGES = ("igmask", "torch", "torchvision", "numpy", "pillow", "snakemake")
_TABLES = (1, 2, 3, 4)

# Beside what the page says itself, nothing: no request, no code of anyone else's.
_ALLOWED = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


@dataclass(frozen=True)
class Shown:
    """A table: its title, its columns, rows of texts, notes beneath it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def page(
    tables: Path, output: Path, *, study: dict[str, Any], galleries: list[Path] | None = None
) -> None:
    """Write the page of a study, one HTML file.

    tables:    the folder of `igmask tables`
    study:     its configuration; device, batch size and the like left out
    galleries: of `igmask gallery`, a file a model, in order
    raises     InputError if tables are missing or are none, naming the file
    """
    accuracy, curves = _read(tables / "accuracy.csv"), _read_if_there(tables / "curves.csv")
    galleries = galleries or []
    shown = [_gallery(path) for path in galleries]
    parsed = config.parse(study, with_files=False)
    own = accuracy[accuracy["mask"].map(network_of).isna()]
    right = RIGHTNESS[own["truth"].iloc[0]]
    drawn = plots(own, curves, TOP[parsed.selection.by])
    compared = _compared(tables / "comparisons.csv")
    halves, top = list(_halves(own, curves, compared)), TOP[parsed.selection.by]
    in_fill = f", filled with {parsed.masking.fills[0]}" if len(parsed.masking.fills) > 1 else ""
    text = _template().render(
        allowed=_ALLOWED,
        name=str(parsed.dataset.name),
        is_demo=parsed.dataset.source == "demo",
        question=_question(parsed, own),
        findings=list(_findings(halves, right, top, in_fill)),
        lead=_lead(halves, top, in_fill),
        tables=[_table(path) for path in _there(tables)],
        has_gallery=bool(shown),
        has_curves=curves is not None,
        warnings=config.warnings(parsed) + list(_doubts(shown)),
        completeness=[one for one in shown if one["completeness"]],
        settings=_as_yaml(study),
        versions=dict(_versions()),
        style=_part("page.css"),
        script=_part("page.js"),
        vega=_vega(),
        data=_for_a_script({"plots": drawn, "galleries": _with_shared_pictures(shown)}),
    )
    arrays.write_text(output, text)


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined  # slow to import

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_part("page.html"))


def _part(name: str) -> str:
    return (resources.files("igmask.report.page") / name).read_text("utf-8")


def _vega() -> str:
    """Vega, Vega-Lite and vega-embed in one script, as vl-convert brings them."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub asks for more
    return bundle.replace("</script", "<\\/script")


def _read(path: Path) -> pd.DataFrame:
    return arrays.read_table(path, "model", "mode", "mask", "top1", "truth", texts=["p"])


class _Difference(NamedTuple):
    """A difference with its interval in words, and its sign, 0 where it may be chance."""

    text: str
    sign: int


def _compared(path: Path) -> dict[tuple[str, ...], _Difference]:
    """Differences by model and the names of two conditions."""
    if not path.exists():
        return {}
    found = arrays.read_table(path, "model", "first", "second")
    return {
        (row.model, row.first, row.second): _Difference(
            f"{signed(row.difference)} points (95 % interval {between(row.ci_low, row.ci_high)})",
            int(row.ci_low > 0) - int(row.ci_high < 0),
        )
        for row in found.itertuples()
    }


def _read_if_there(path: Path) -> pd.DataFrame | None:
    return _read(path) if path.exists() else None


def _there(tables: Path) -> list[Path]:
    found = [tables / f"table{number}.md" for number in _TABLES]
    return [path for path in found if path.exists()]


def _gallery(path: Path) -> dict[str, Any]:
    with refusing(
        ValueError, FileNotFoundError, says=lambda e: f"{path}: not of `igmask gallery`: {e}"
    ):
        found = dict(json.loads(path.read_text("utf-8")))
    if "levels" not in found:
        raise InputError(f"{path}: not of `igmask gallery`")
    return found


def _with_shared_pictures(galleries: list[dict[str, Any]]) -> dict[str, Any]:
    """Pictures once each, whatever number of networks see them."""
    places: dict[str, int] = {}

    def place(picture: Any) -> Any:
        return places.setdefault(picture, len(places)) if isinstance(picture, str) else picture

    models = [
        one
        | {
            "pictures": [place(picture) for picture in one["pictures"]],
            "fills": {
                fill: values and [place(value) for value in values]
                for fill, values in one["fills"].items()
            },
        }
        for one in galleries
    ]
    return {"models": models, "pictures": list(places)}


def _for_a_script(data: Any) -> str:
    """JSON that may stand in a script element, whatever its texts hold."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _table(markdown: Path) -> Shown:
    """The rows of a table as CSV has them; title and notes as Markdown has them."""
    with refusing(FileNotFoundError, ValueError, says=lambda e: f"{markdown}: {e}"):
        flat = pd.read_csv(markdown.with_suffix(".csv"), dtype=str, keep_default_na=False)
        lines = markdown.read_text("utf-8").splitlines()
    title = lines[0].strip("*") if lines else ""
    notes = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    return Shown(title, list(flat.columns), flat.to_numpy().tolist(), notes)


def _question(study: Study, accuracy: pd.DataFrame) -> str:
    """What was asked, in a sentence."""
    asked, squares, selection = study.attribution, study.squares, study.selection
    n_models, n = accuracy["model"].nunique(), int(accuracy["n"].max())
    what = "Integrated Gradients" if asked.is_integrated else asked.method
    steps = f" ({asked.n_steps} steps from {asked.baseline})" if asked.is_integrated else ""
    of = TOP[selection.by]
    ps = ", ".join(percent(p) for p in sorted(selection.p, reverse=True))
    ways = {
        "keep": "alone stay",
        "drop": "are masked",
    }
    modes = ", or ".join(ways[mode] for mode in study.masking.modes)
    networks = f"do {n_models} networks" if n_models > 1 else "does one network"
    images = f"{n:,} images" if n > 1 else "one image"
    fills = ", or ".join(study.masking.fills)
    return (
        f"What {networks} say of {images} of {study.dataset.name} when "
        f"the {squares.side}×{squares.side} squares that hold the top p\u00a0% of {of} by "
        f"{what}{steps} {modes}; p = {ps}; what is masked becomes {fills}?"
    )


@dataclass(frozen=True)
class _Halves:
    """Keep and drop of a model at one p, beside their controls, and at equal area."""

    model: str
    p: str
    original: float | None
    at_p: dict[str, dict[str, Any]]
    equal: dict[str, float]
    difference: _Difference | None
    others: dict[str, tuple[float, float]]  # keep and drop with further fills


def _halves(
    accuracy: pd.DataFrame,
    curves: pd.DataFrame | None,
    compared: dict[tuple[str, ...], _Difference],
) -> Iterator[_Halves]:
    masked = accuracy[accuracy["mode"] != "original"]
    if masked.empty:
        return
    p = percent(middle(masked["p"].astype(float)))
    fill = masked["fill"].iloc[0]
    for model, rows in accuracy.groupby("model", sort=False):
        original = rows.loc[rows["mode"] == "original", "top1"]
        at = rows[(rows["p"] == p) & (rows["fill"] == fill)]
        at_p: dict[str, dict[str, Any]] = {}
        for row in at.itertuples():
            of = at_p.setdefault(row.mode, {})
            of[row.mask] = row.top1
            if row.mask == "selection":
                of["area"] = row.area_kept
        equal = {}
        if curves is not None:
            of_model = curves[
                (curves["model"] == model)
                & (curves["fill"] == fill)
                & (curves["mask"] == "selection")
            ]
            half = of_model[of_model["share"].astype(float) == 50]
            equal = dict(zip(half["mode"], half["top1"], strict=True))
        first = float(original.iloc[0]) if len(original) else None
        of_fills = rows[(rows["p"] == p) & (rows["mask"] == "selection")]
        by_fill = of_fills.pivot_table("top1", "fill", "mode", sort=False)
        others = {
            str(one): (float(of["keep"]), float(of["drop"]))
            for one, of in by_fill.iterrows()
            if one != fill and {"keep", "drop"} <= {*of.dropna().index}
        }
        two = (Condition(mode, float(p), fill, "selection").name for mode in ("keep", "drop"))
        difference = compared.get((str(model), *two))
        yield _Halves(str(model), p, first, at_p, equal, difference, others)


def _findings(
    halves: list[_Halves], right: Rightness, top: str, in_fill: str
) -> Iterator[tuple[str, str]]:
    """A sentence a model, with areas and controls in it."""
    for of in halves:
        parts = []
        if of.original is not None:
            parts.append(f"{right.quantity} {of.original:.1f} % on the originals")
        words = {
            "keep": f"{{top1:.1f}} % with the top {of.p} % of {top} alone {{area}}",
            "drop": "{top1:.1f} % without it {area}",
        }
        if "selection" not in of.at_p.get("keep", {}):
            words["drop"] = f"{{top1:.1f}} % without the top {of.p} % of {top} {{area}}"
        for mode, text in words.items():
            if "selection" not in of.at_p.get(mode, {}):
                continue
            found = of.at_p[mode]
            area = f"{found['area']:.0f} % of the area left"
            if "random" in found:
                area += f", where as many random squares give {found['random']:.1f} %"
            parts.append(text.format(top1=found["selection"], area=f"({area})"))
        text = "; ".join(parts)
        if of.difference:
            text += f": keep minus drop is {of.difference.text}"
        if of.equal.keys() >= {"keep", "drop"}:
            text += (
                f". At equal area, half of the pixels each: {of.equal['keep']:.1f} % with the more "
                f"important half, {of.equal['drop']:.1f} % with the other"
            )
        text += f"{in_fill}."
        if of.others:
            told = (
                f"{keep:.1f} and {drop:.1f} % with {fill}"
                for fill, (keep, drop) in of.others.items()
            )
            text += f" Filled otherwise, keep and drop have {', '.join(told)}."
        yield of.model, text


def _lead(halves: list[_Halves], top: str, in_fill: str) -> list[str]:
    """The finding over all models, with area and control, and what is so at equal area.

    Nothing where one mode is missing.
    """
    both = [of for of in halves if all("selection" in of.at_p.get(x, {}) for x in ("keep", "drop"))]
    if not both:
        return []
    p, n, keeps = halves[0].p, len(both), [of.at_p["keep"] for of in both]
    kept = sum(keep["area"] for keep in keeps) / n
    text = (
        f"{_fared([_sign(of) for of in both])} with the top {p} % of {top} alone than with what "
        f"was left without it, but the former are {kept:.0f} % of the area and the latter "
        f"{100 - kept:.0f} %{in_fill}"
    )
    if all("random" in keep for keep in keeps):
        own, random = (sum(keep[x] for keep in keeps) / n for x in ("selection", "random"))
        mean = ", in the mean," if n > 1 else ""
        text += (
            f"; the top squares alone give{mean} {own:.0f} %, as many random ones {random:.0f} %"
        )
    sentences = [f"{text}."]
    equal = [of.equal for of in halves if of.equal.keys() >= {"keep", "drop"}]
    if equal:
        higher = sum(of["keep"] > of["drop"] for of in equal)
        of_all = f" with {higher} of {len(equal)} networks" if len(equal) > 1 else ""
        more = "more" if higher else "no more"
        sentences.append(
            f"At equal area, half of the pixels each, the more important half gives {more} than "
            f"the other{of_all}."
        )
    return sentences


def _sign(of: _Halves) -> int:
    """Whether keep gave more (1) or less (−1) than drop; 0 where it may be chance."""
    if of.difference is not None:
        return of.difference.sign
    keep, drop = (of.at_p[mode]["selection"] for mode in ("keep", "drop"))
    return int(keep > drop) - int(keep < drop)


def _fared(signs: list[int]) -> str:
    """How networks fared with one thing beside another, beyond chance."""
    n, worse, better, open_ = len(signs), signs.count(-1), signs.count(1), signs.count(0)
    if n == 1:
        words = {
            -1: "fared worse",
            1: "fared better",
            0: "fared, beyond chance, no worse or better",
        }
        return f"The network {words[signs[0]]}"
    told = [f"{better} better"] * bool(better) + [f"{open_} not beyond chance"] * bool(open_)
    beside = f" ({', '.join(told)})" if told else ""
    return f"{worse} of {n} networks fared worse{beside}"


def _doubts(galleries: list[dict[str, Any]]) -> Iterator[str]:
    for one in galleries:
        if one["skipped"]:
            yield f"{one['model']}: {one['skipped']} images could not be read, and were left out"
        error = one["completeness"]
        if error and error["share_above"] > 0.1:
            share = 100 * error["share_above"]
            yield (
                f"{one['model']}: in {share:.0f} % of the images the attribution "
                "misses completeness by more than a tenth; more steps, or rule adaptive, come "
                "nearer"
            )


def _as_yaml(study: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(study, sort_keys=False, allow_unicode=True)


def _versions() -> Iterator[tuple[str, str]]:
    yield "Python", platform.python_version()
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
