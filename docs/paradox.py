"""Fill the tables of paradox.md with the results of two studies: `snakemake paradox`.

    python docs/paradox.py results results/paradox-demo/results --output results/paradox.md

A table stands between <!-- NAME --> and <!-- /NAME -->, and is the function `NAME` below.
"""

import re
from pathlib import Path

import click
import pandas as pd

from igmask import arrays
from igmask.report.claims.comparisons import between, signed
from igmask.statistics.paired import p_text

_LN_10 = 2.302585092994046


class Study:
    """The tables of a finished study."""

    def __init__(self, results: Path) -> None:
        self.tables = results / "tables"
        self.accuracy = pd.read_csv(self.tables / "accuracy.csv", keep_default_na=False)
        self.accuracy["p"] = self.accuracy["p"].astype(str)
        self.compared = arrays.read_table(self.tables / "comparisons.csv")
        self.models = list(dict.fromkeys(self.accuracy["model"]))

    def of(self, model: str, condition: str) -> pd.Series:
        """Return the row of a condition by the name of its records."""
        rows = self.accuracy
        return rows[(rows["model"] == model) & (rows["condition"] == condition)].iloc[0]

    def difference(self, model: str, first: str, second: str) -> str:
        """Return the difference of two conditions with its interval."""
        row = self.pair(model, first, second)
        kind = "bootstrap" if pd.isna(row["ci_low"]) else "ci"
        around = between(row[f"{kind}_low"], row[f"{kind}_high"])
        return f"{signed(row['difference'])} ({around})"

    def pair(self, model: str, first: str, second: str) -> pd.Series:
        """Return the comparison of two conditions."""
        rows = self.compared[self.compared["model"] == model]
        return rows[(rows["first"] == first) & (rows["second"] == second)].iloc[0]

    def masks(self) -> list[str]:
        """Return the controls, in order."""
        known = dict.fromkeys(self.accuracy["mask"])
        return [name for name in known if name not in ("none", "selection") and "of-" not in name]


def markdown(rows: list[dict[str, str]]) -> str:
    """Return rows of texts as a table."""
    return pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True)


def published(study: Study) -> str:
    """Table 3 with what it compares: areas, random squares, the difference and its test."""
    rows = []
    for model in study.models:
        keep, drop = (study.of(model, f"{mode}-50-black") for mode in ("keep", "drop"))
        pair = study.pair(model, "keep-50-black", "drop-50-black")
        rows.append(
            {
                "network": model,
                "original": f"{study.of(model, 'original')['top1']:.1f}",
                "keep 50": f"{keep['top1']:.1f}",
                "its area": f"{keep['area_kept']:.1f}",
                "drop 50": f"{drop['top1']:.1f}",
                "its area ": f"{drop['area_kept']:.1f}",
                "keep − drop": study.difference(model, "keep-50-black", "drop-50-black"),
                "right alone": f"{pair['first_only']} : {pair['second_only']}",
                "p, Holm": p_text(pair["log10_p_holm"] * _LN_10),
            }
        )
    return markdown(rows)


def equal_area(study: Study) -> str:
    """Half of the pixels each, and random squares of as many."""
    points = arrays.read_table(study.tables / "curves.csv")
    half = points[points["share"] == 50]
    rows = []
    for (model, fill), here in half.groupby(["model", "fill"], sort=False):
        of_mask = here.set_index(["mask", "mode"])["top1"]
        rows.append(
            {
                "network": model,
                "fill": fill,
                "keep the important half": f"{of_mask['selection', 'keep']:.1f}",
                "keep the other": f"{of_mask['selection', 'drop']:.1f}",
                "keep a random half": f"{of_mask['random', 'keep']:.1f}",
            }
        )
    return markdown(rows)


def controls(study: Study) -> str:
    """How far keep-50 and drop-50 are above the same with each control of the same area."""
    rows = []
    for control in study.masks():
        row = {"squares instead": control}
        for model in study.models:
            for mode in ("keep", "drop"):
                name = f"{mode}-50-black"
                difference = study.difference(model, name, f"{name}-{control}")
                row[f"{model}: {mode} 50 − those"] = difference
        rows.append(row)
    return markdown(rows)


def fills(study: Study) -> str:
    """Table 3 and the areas under the curves with each fill."""
    areas = arrays.read_table(study.tables / "areas.csv")
    rows = []
    chosen = areas[areas["mask"] == "selection"]
    for row in chosen.itertuples():
        by_chance = areas[(areas["model"] == row.model) & (areas["fill"] == row.fill)]
        oms = by_chance[by_chance["mask"] == "random"]["insertion"].iloc[0]
        rows.append({"network": row.model, "fill": row.fill})
        for mode in ("keep", "drop"):
            name = f"{mode}-50-{row.fill}"
            random = study.of(row.model, f"{name}-random")["top1"]
            rows[-1][f"{mode} 50 (random)"] = (
                f"{study.of(row.model, name)['top1']:.1f} ({random:.1f})"
            )
        rows[-1]["changed, drop 50"] = (
            f"{100 * float(study.of(row.model, f'drop-50-{row.fill}')['mean_changed']):.1f}"
        )
        rows[-1]["SRG"] = f"{row.srg:.3f} ({row.srg_low:.3f} … {row.srg_high:.3f})"
        rows[-1]["insertion − random"] = signed_3(row.keep_minus_random)
        rows[-1]["random − deletion"] = signed_3(row.random_minus_drop)
        rows[-1]["R-OMS"] = f"{oms:.3f}"
    return markdown(rows)


def signed_3(value: float) -> str:
    """Return a number with its sign and three digits."""
    return f"{value:+.3f}".replace("-", "−")


def collapse(study: Study) -> str:
    """How varied predictions are, and what a linear classifier reads from masks."""
    rows = []
    for model in study.models:
        for name in ("original", "keep-90-black", "keep-50-black", "drop-50-black"):
            row = study.of(model, name)
            rows.append(
                {
                    "network": model,
                    "condition": name.removesuffix("-black").replace("-", " "),
                    "top-1": f"{row['top1']:.1f}",
                    "of right originals": f"{row['top1_of_right']:.1f}",
                    "predicted most": row["most_frequent_prediction"],
                    "its share": f"{row['most_frequent_share']:.1f}",
                    "entropy, 1 at most": f"{row['entropy_share']:.2f}",
                    "class from the mask": text_of(row["from_mask"]),
                    "from its size": text_of(row["from_number"]),
                }
            )
    return markdown(rows)


def text_of(value: object) -> str:
    """Return a percentage, or nothing where there is none."""
    return f"{float(str(value)):.1f}" if str(value) else ""


def transfer(study: Study) -> str:
    """Table 8, of the black fill."""
    table = pd.read_csv(study.tables / "table8.csv", dtype=str, keep_default_na=False)
    return table[table["quantity"].isin(["", "black"])].to_markdown(index=False)


def converged(study: Study) -> str:
    """Table 9, of the black fill."""
    table = pd.read_csv(study.tables / "table9.csv", dtype=str, keep_default_na=False)
    several = table["model"].str.contains(", ").any()
    rows = table[table["model"].str.endswith(", black")] if several else table
    rows = rows.rename(columns={"quantity": ""})
    return rows.to_markdown(index=False, disable_numparse=True)


def readings(study: Study) -> str:
    """In how many readings each sentence holds."""
    text = (study.tables / "sentences.md").read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if line.startswith("|"))


OF_PHOTOGRAPHS = (published, equal_area, controls, fills, collapse, transfer, converged, readings)
OF_DEMO = (published, equal_area, controls, collapse)


@click.command()
@click.argument("photographs", type=click.Path(path_type=Path))
@click.argument("demo", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(photographs: Path, demo: Path, output: Path) -> None:
    """Write paradox.md with the tables of the results of PHOTOGRAPHS and of the DEMO."""
    text = Path(__file__).with_suffix(".md").read_text("utf-8")
    of_photographs, of_demo = Study(photographs), Study(demo)
    named = {one.__name__: one(of_photographs) for one in OF_PHOTOGRAPHS}
    named |= {f"demo-{one.__name__}": one(of_demo) for one in OF_DEMO}
    for name, table in named.items():
        block = f"<!-- {name} -->\n\n{table}\n\n<!-- /{name} -->"
        pattern = rf"(?s)<!-- {name} -->.*?<!-- /{name} -->"
        text, n = re.subn(pattern, lambda _, block=block: block, text)
        if n != 1:
            raise click.ClickException(f"paradox.md has {n} places for {name}")
    arrays.write_text(output, text)


if __name__ == "__main__":
    main()
