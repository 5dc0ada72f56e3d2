"""Comparisons of conditions against counts by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from igmask import arrays
from igmask.asked.recipes import Tables
from igmask.errors import InputError
from igmask.report.claims.comparisons import collect as compared
from igmask.report.claims.comparisons import of_files, shown, signed
from igmask.report.tables import collect, tables
from igmask.statistics.paired import Pairs, interval, log_mid_p

NAMES = np.array([f"{i:02}.png" for i in range(40)])


def write(folder, mode, right, *, p=50.0, mask="selection", name="net", draws=1, **changes):
    """Records of as many images as there are answers; `right` of draws one after the other."""
    right = np.asarray(right, bool)
    n = len(right) // draws
    records = pd.DataFrame(
        {
            "name": np.repeat(NAMES[:n], draws),
            "label": np.repeat(np.arange(n) % 2, draws),
            "draw": np.tile(np.arange(draws), n),
            "correct": right,
            "area_kept": 0.25,
        }
    )
    records["predicted"] = np.where(right, records["label"], 1 - records["label"])
    settings = {"step": "evaluate", "name": name, "mode": mode, "mask": mask, "n_classes": 2}
    settings |= {"model": {"source": "m:f", "weights": None}, "classes": ["a", "b"], "skipped": []}
    settings |= {"dataset": {"source": "folder"}, "class_names": ["a", "b"], "draws": draws}
    if mode != "original":
        settings |= {"p": p, "fill": "black", "by": "mass", "score": "positive", "side": 3}
        settings["completeness"], settings["attribution"] = None, {"target": "predicted"}
        settings["attribution"]["method"] = "my:own"
    path = folder / f"{name}-{mode}-{p}-{mask}.parquet"
    arrays.write_records(path, records, settings | changes)
    return path


@pytest.fixture
def study(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        write(tmp_path, "original", rng.random(40) < 0.9, mask="none", name=name)
        for p in (50.0, 90.0):
            write(tmp_path, "keep", rng.random(40) < p / 200, p=p, name=name)
            write(tmp_path, "drop", rng.random(40) < 0.6, p=p, name=name)
            drawn = rng.random(200) < 0.3
            write(tmp_path, "keep", drawn, p=p, mask="random", name=name, draws=5)
            write(tmp_path, "keep", drawn[:40], p=p, mask="edges", name=name)
    return tmp_path


def outcomes(folder):
    return collect(sorted(folder.glob("*.parquet"))).models


def test_a_comparison_is_of_pairs(study):
    found = compared(outcomes(study).values(), (), replicates=200, seed=0).rows
    row = found[(found["model"] == "one") & (found["second"] == "drop-50-black")].iloc[0]
    keep, drop = (
        arrays.read_records(study / f"one-{mode}-50.0-selection.parquet")[0]["correct"].to_numpy()
        for mode in ("keep", "drop")
    )
    counts = Pairs(*((keep == a) & (drop == b) for a in (True, False) for b in (True, False)))
    counts = Pairs(*(int(of.sum()) for of in counts))
    assert (row["first_only"], row["second_only"]) == (counts.first, counts.second)
    assert row["difference"] == pytest.approx(100 * (keep.mean() - drop.mean()))
    expected = [100 * bound for bound in interval(counts)]
    assert row[["ci_low", "ci_high"]].tolist() == pytest.approx(expected)
    assert row["log10_p"] == pytest.approx(log_mid_p(counts.first, counts.second) / math.log(10))
    assert row["bootstrap_low"] < row["difference"] < row["bootstrap_high"]


def test_several_draws_are_averaged_but_in_the_test(study):
    found = compared(outcomes(study).values(), (), replicates=200, seed=0).rows
    row = found[(found["model"] == "one") & (found["second"] == "keep-50-black-random")].iloc[0]
    keep = arrays.read_records(study / "one-keep-50.0-selection.parquet")[0]["correct"].to_numpy()
    drawn = arrays.read_records(study / "one-keep-50.0-random.parquet")[0]["correct"].to_numpy()
    drawn = drawn.reshape(40, 5)
    assert row["difference"] == pytest.approx(100 * (keep.mean() - drawn.mean()))
    assert row[["ci_low", "ci_high"]].isna().all()
    assert row["first_only"] == (keep & ~drawn[:, 0]).sum()
    assert row["second_only"] == (~keep & drawn[:, 0]).sum()
    single = found[(found["model"] == "one") & (found["second"] == "keep-50-black-edges")].iloc[0]
    assert single[["ci_low", "ci_high"]].notna().all()


def test_only_a_declared_family_is_adjusted_and_another_p_does_not_change_it(study):
    pairs = ("keep-50-black against drop-50-black", "keep-50-black against keep-50-black-edges")
    models = outcomes(study)
    found = compared(models.values(), pairs, replicates=100, seed=0)
    adjusted = found.rows.dropna(subset="log10_p_holm")
    assert len(adjusted) == 4
    assert (adjusted["log10_p_holm"] >= adjusted["log10_p"]).all()
    least = adjusted.loc[adjusted["log10_p"].idxmin()]
    assert least["log10_p_holm"] == pytest.approx(min(0, least["log10_p"] + math.log10(4)))
    assert "4 tests of the declared family, keep-50-black against drop-50-black" in found.notes[-1]
    for path in study.glob("*-90.0-*"):
        path.unlink()
    fewer = compared(outcomes(study).values(), pairs, replicates=100, seed=0).rows
    columns = ["first", "second", "difference", "log10_p", "log10_p_holm", "bootstrap_low"]
    again = fewer.dropna(subset="log10_p_holm")[columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(adjusted[columns].reset_index(drop=True), again)


def test_a_family_is_keep_against_drop_by_default(study):
    found = compared(outcomes(study).values(), (), replicates=100, seed=0).rows
    adjusted = found.dropna(subset="log10_p_holm")
    assert adjusted["first"].tolist() == ["keep-50-black"] * 2
    assert adjusted["second"].tolist() == ["drop-50-black"] * 2


def test_a_family_of_unknown_conditions_is_refused(study):
    family = ("keep-50-black against drop-55-black",)
    with pytest.raises(InputError, match="no condition 'drop-55-black'; did you mean 'drop-50-bl"):
        compared(outcomes(study).values(), family, replicates=100, seed=0)


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ("drop-50-black against keep-50-black", "is there twice"),
        ("keep-90-black against keep-90-black", "compares a condition with itself"),
    ],
)
def test_a_family_has_no_test_twice(study, second, says):
    family = ("keep-50-black against drop-50-black", second)
    with pytest.raises(InputError, match=rf"statistics.family: {second} {says}"):
        compared(outcomes(study).values(), family, replicates=100, seed=0)


def test_records_of_two_studies_are_no_study(study):
    twice = study / "again.parquet"
    arrays.write_records(twice, *arrays.read_records(study / "one-keep-50.0-edges.parquet"))
    with pytest.raises(InputError, match="one: there are two files of records of keep-50-black-ed"):
        outcomes(study)
    twice.unlink()
    path = study / "one-drop-90.0-selection.parquet"
    records, settings = arrays.read_records(path)
    records["name"] = "other" + records["name"]
    arrays.write_records(path, records, settings)
    says = "one: the records of drop-90-black are of other images .* other00.png and 39 more"
    with pytest.raises(InputError, match=says):
        outcomes(study)


def test_files_of_other_labels_are_not_compared(study):
    one, two = (study / f"{name}-keep-50.0-selection.parquet" for name in ("one", "two"))
    records, settings = arrays.read_records(two)
    arrays.write_records(two, records.assign(label=1 - records["label"]), settings)
    with pytest.raises(InputError, match=r"00.png has the label 0 in .*; 39 more have others"):
        of_files(one, two, replicates=100, seed=0)


def test_table_6_has_the_middle_p_and_the_family(study):
    recipe = Tables(family=("keep-90-black against drop-90-black",), replicates=100)
    tables([study], output=study / "out", recipe=recipe)
    table = pd.read_csv(study / "out" / "table6.csv", dtype=str, index_col=[0, 1])
    seconds = sorted(second for first, second in table.index if first == "one")
    assert seconds == [
        "keep 50 − drop 50",
        "keep 50 − edges squares",
        "keep 50 − random squares",
        "keep 90 − drop 90",
    ]
    assert table["p, Holm"].notna().sum() == 2
    assert table.loc[("one", "keep 50 − random squares"), "95 % interval"].endswith("°")
    long = pd.read_csv(study / "out" / "comparisons.csv")
    assert len(long) == 2 * 2 * 3


def test_two_files_are_compared_whatever_they_are_of(study):
    one, two = (study / f"{name}-keep-50.0-selection.parquet" for name in ("one", "two"))
    lines = of_files(one, two, replicates=200, seed=0)
    a, b = (arrays.read_records(path)[0]["correct"] for path in (one, two))
    assert lines[0] == "top-1 of 40 images, in %"
    assert f"difference {signed(100 * (a.mean() - b.mean()))} points" in lines[3]
    assert f"the first alone {(a & ~b).sum()}, under the second alone {(~a & b).sum()}" in lines[4]


def test_a_condition_beside_itself_does_not_differ(study):
    path = study / "one-keep-50.0-selection.parquet"
    lines = of_files(path, path, replicates=200, seed=0)
    assert "difference 0.0 points" in lines[3]
    assert "McNemar's mid-p 1" in lines[4]


def test_what_cannot_be_compared_is_refused(study, tmp_path):
    one = study / "one-keep-50.0-selection.parquet"
    fewer = write(tmp_path, "keep", [True] * 30, name="fewer")
    with pytest.raises(InputError, match=r"other images: only one of them has 30.png and 9 more"):
        of_files(one, fewer, replicates=100, seed=0)
    own = write(tmp_path, "keep", [True] * 40, name="own", dataset={"source": "photos"})
    with pytest.raises(InputError, match=r"says top-1, and .* agreement"):
        of_files(one, own, replicates=100, seed=0)
    records, settings = arrays.read_records(one)
    arrays.write_records(tmp_path / "masks.parquet", records, settings | {"step": "mask"})
    with pytest.raises(InputError, match="no records of `igmask evaluate`"):
        of_files(tmp_path / "masks.parquet", one, replicates=100, seed=0)
    arrays.write_records(one, pd.concat([records, records[:1]]), settings)
    with pytest.raises(InputError, match=r"00.png is there twice"):
        of_files(one, one, replicates=100, seed=0)


def test_one_class_and_one_image_have_stated_values(tmp_path):
    keep = write(tmp_path, "keep", [True], name="a")
    drop = write(tmp_path, "drop", [False], name="a")
    lines = of_files(keep, drop, replicates=100, seed=0)
    assert "difference +100.0 points" in lines[3]
    assert "McNemar's mid-p 0.5" in lines[4]


def test_points_are_signed():
    assert [signed(x) for x in (1.25, -0.31, -0.04, 0.0)] == ["+1.2", "−0.3", "0.0", "0.0"]


def test_collapse_is_counted(study):
    found = collect(sorted(study.glob("*.parquet")))
    rows = found.accuracy.set_index(["model", "condition"])
    right = arrays.read_records(study / "one-keep-50.0-selection.parquet")[0]["correct"].to_numpy()
    before = arrays.read_records(study / "one-original-50.0-none.parquet")[0]["correct"].to_numpy()
    row = rows.loc[("one", "keep-50-black")]
    label = np.arange(40) % 2
    assert row["top1_of_right"] == pytest.approx(100 * right[before].mean())
    assert row["top1_balanced"] == pytest.approx(
        50 * (right[label == 0].mean() + right[label == 1].mean())
    )
    said = np.where(right, label, 1 - label)
    share = said.mean()
    entropy = -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert row["entropy_share"] == pytest.approx(entropy)
    classes = found.classes.set_index(["model", "condition", "class"])
    assert classes.loc[("one", "keep-50-black", 1), "n_predicted"] == said.sum()
    assert classes.loc[("one", "keep-50-black", 1), "n"] == 20
    assert classes.loc[("one", "keep-50-black", 1), "top1"] == pytest.approx(
        100 * right[label == 1].mean()
    )
    assert (
        shown(
            compared(found.models.values(), (), replicates=100, seed=0), found.models.values()
        ).shape[0]
        == 6
    )
