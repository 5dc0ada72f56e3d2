"""Tables against counts by hand and SciPy's intervals."""

import xml.etree.ElementTree as ET
from itertools import cycle, islice, product

import numpy as np
import pandas as pd
import pytest
import torchvision.models
from scipy.stats import binomtest, entropy

from igmask import arrays
from igmask.asked import config, fields
from igmask.errors import InputError
from igmask.plain import FILLS
from igmask.report.claims.readings import collect as read_readings
from igmask.report.published import N_IMAGES, published_top1
from igmask.report.tables import collect, render, widen, wilson
from igmask.report.tables import tables as write_tables


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (804, 1000), (1, 3), (25_000, 50_000)])
def test_wilson_equals_scipy(k, n):
    expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


def _tables(record_paths, *, output):
    write_tables(record_paths, output=output)


CLASS_NAMES = ["cat", "dog", "a class of a very long name"]
MODEL = fields.plain(config.model({"source": "resnet50", "weights": "IMAGENET1K_V1"}))


def write(
    folder, name, mode, p=None, *, fill="black", correct=(1, 0), n=10, skipped=(), wrong=(1,)
):
    """Files of records of n images, the given counts of the selection and the control right.

    wrong: what is predicted of the others, in turn
    """
    kinds = ["none"] if mode == "original" else ["selection", "random"]
    parts = {
        kind: pd.DataFrame(
            {
                "name": [f"{i}.png" for i in range(n)],
                "label": 0,
                "draw": 0,
                "predicted": [0] * right + list(islice(cycle(wrong), n - right)),
                "correct": [True] * right + [False] * (n - right),
                "area_kept": {"none": 1.0, "selection": 0.25, "random": 0.251}[kind],
            }
        )
        for kind, right in zip(kinds, correct, strict=False)
    }
    settings = {"step": "evaluate", "name": name, "mode": mode, "model": MODEL, "classes": []}
    settings |= {"dataset": {"source": "demo"}, "n_classes": 10, "class_names": CLASS_NAMES}
    settings["skipped"] = list(skipped)
    if mode != "original":
        settings |= {
            "p": p,
            "fill": fill,
            "blank": {"class": 2, "probability": 0.625} if fill == "black" else None,
            "by": "mass",
            "score": "positive",
            "side": 3,
            "completeness": {"mean": 0.0412, "median": 0.02, "max": 0.8, "n_without_change": 3},
            "attribution": fields.plain(
                config.parse(
                    {"dataset": {"source": "demo"}, "models": {"a": {"source": "m:f", "size": 8}}}
                ).attribution
            ),
        }
    paths = []
    for kind, records in parts.items():
        paths.append(folder / f"{name}-{mode}-{p}-{fill}-{kind}.parquet")
        arrays.write_records(paths[-1], records, settings | {"mask": kind})
    return paths


@pytest.fixture
def study(tmp_path):
    paths = []
    for k, name in enumerate(("zeta", "alpha_%&")):
        paths += write(tmp_path, name, "original", correct=(8 + k,))
        for p in (30.0, 90.0, 50.0, 12.5):
            paths += write(tmp_path, name, "keep", p, correct=(int(p) // 10, 1))
            paths += write(tmp_path, name, "drop", p, correct=(9 - int(p) // 10, 4))
    return paths


def test_the_long_form_has_a_row_a_condition_and_mask(study, tmp_path):
    _tables(study, output=tmp_path)
    found = pd.read_csv(tmp_path / "accuracy.csv")
    expected = ["model", "mode", "p", "fill", "mask", "n", "top1", "ci_low", "ci_high", "area_kept"]
    assert found.columns[:10].tolist() == expected
    control = found[found["mask"] == "random"]
    assert control["published_top1"].isna().all()
    assert control["blank_predicted"].isna().all()
    row = control[(control["model"] == "zeta") & (control["mode"] == "drop") & (control["p"] == 50)]
    assert row[["n", "top1", "area_kept"]].values.tolist() == [[10, 40, 25.1]]
    low, high = binomtest(4, 10).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(row[["ci_low", "ci_high"]], [[100 * low, 100 * high]], atol=1e-4)
    found = found[found["mask"] != "random"]
    assert found["model"].tolist() == ["zeta"] * 9 + ["alpha_%&"] * 9
    assert found["mode"].tolist()[:9] == ["original"] + ["keep"] * 4 + ["drop"] * 4
    assert found["p"].tolist()[1:9] == [90, 50, 30, 12.5] * 2
    row = found[(found["model"] == "zeta") & (found["mode"] == "keep") & (found["p"] == 50)]
    assert row[["n", "top1", "area_kept"]].values.tolist() == [[10, 50, 25]]
    low, high = binomtest(5, 10).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(row[["ci_low", "ci_high"]], [[100 * low, 100 * high]], atol=1e-4)
    original = found[found["mode"] == "original"]
    assert original["area_kept"].tolist() == [100, 100]
    assert original[["p", "fill"]].isna().all().all()
    assert original["mask"].tolist() == ["none", "none"]


def test_tables_go_through_whatever_controls_there_are(study, tmp_path):
    own = []
    for path in study:
        records, settings = arrays.read_records(path)
        if settings["mask"] == "random":
            own.append(path.with_name(f"own-{path.name}"))
            changed = records.assign(correct=True, area_kept=0.5)
            arrays.write_records(own[-1], changed, settings | {"mask": "my:own"})
    _tables([*own, *study], output=tmp_path)
    table = pd.read_csv(tmp_path / "table1.csv", dtype=str, index_col=[0, 1])
    assert table.loc[("zeta", "random squares"), "keep 50 %"] == "10.0"
    assert table.loc[("zeta", "my:own squares"), "keep 50 %"] == "100.0"
    assert table.loc[("zeta", "my:own area"), "keep 50 %"] == "50.0"
    text = (tmp_path / "table1.md").read_text()
    assert "random squares: top-1 with squares drawn at random" in text


def test_p_is_written_without_needless_decimals(study, tmp_path):
    _tables(study, output=tmp_path)
    lines = (tmp_path / "accuracy.csv").read_text().splitlines()
    assert lines[2].startswith("zeta,keep,90,black,selection,10,90.0,")
    assert lines[8].startswith("zeta,keep,12.5,black,")


def test_wide_tables_have_a_column_a_condition(study, tmp_path):
    _tables(study, output=tmp_path)
    columns = {
        number: pd.read_csv(tmp_path / f"table{number}.csv", dtype=str).columns.tolist()[2:]
        for number in (1, 2, 3)
    }
    percents = ("90", "50", "30", "12.5")
    assert columns[1] == ["original"] + [f"keep {p} %" for p in percents]
    assert columns[2] == ["original"] + [f"drop {p} %" for p in percents]
    assert columns[3] == ["keep 50 %", "drop 50 %"]
    table = pd.read_csv(tmp_path / "table1.csv", dtype=str, index_col=[0, 1])
    assert table.loc[("zeta", "top-1"), "keep 50 %"] == "50.0"
    assert table.loc[("zeta", "95 % interval"), "original"] == "49.0–94.3"
    assert table.loc[("zeta", "area kept"), "keep 50 %"] == "25.0"
    assert table.loc[("zeta", "random squares"), "keep 50 %"] == "10.0"
    assert table.loc[("zeta", "random area"), "keep 50 %"] == "25.1"
    assert table.loc[("alpha_%&", "n"), "keep 30 %"] == "10"


def test_every_format_holds_the_same_numbers_and_the_notes(study, tmp_path):
    _tables(study, output=tmp_path)
    for kind in ("md", "html", "tex"):
        text = (tmp_path / f"table3.{kind}").read_text()
        for piece in ("50.0", "40.0", "Table 3", "0.041", "3 images without a change"):
            assert piece in text, (kind, piece)
    assert r"alpha\_\%\&" in (tmp_path / "table1.tex").read_text()
    page = (tmp_path / "table1.html").read_text()
    assert "alpha_%&amp;" in page
    table = page[page.index("<table") : page.index("</table>") + len("</table>")]
    rows = ET.fromstring(table).findall("./tbody/tr")
    assert len(rows) == 2 * 9


def test_tables_say_what_is_predicted_most_and_how_varied_predictions_are(tmp_path):
    original = write(tmp_path, "a", "original", correct=(5,), n=20, wrong=(1, 2, 7))
    keep = write(tmp_path, "a", "keep", 50.0, correct=(0, 20), n=20, wrong=(2,))
    drop = write(tmp_path, "a", "drop", 50.0, correct=(0, 0), n=20, wrong=(12, 1))
    _tables([*original, *keep, *drop], output=tmp_path)
    found = pd.read_csv(tmp_path / "accuracy.csv")
    found = found[found["mask"] != "random"].reset_index(drop=True)
    assert found["most_frequent_prediction"].tolist() == ["cat", CLASS_NAMES[2], "dog"]
    assert found["most_frequent_share"].tolist() == [25, 100, 50]
    np.testing.assert_allclose(found["entropy"], [2, 0, 1], atol=1e-4)
    assert np.signbit(found["entropy"]).sum() == 0
    for paths, value in zip((original, keep, drop), (5, 20, 10), strict=True):
        said = arrays.read_records(paths[0])[0]["predicted"]
        assert said.value_counts().max() == value
        row = found.loc[(original, keep, drop).index(paths)]
        assert row["entropy"] == pytest.approx(entropy(said.value_counts(), base=2), abs=1e-4)
    table = pd.read_csv(tmp_path / "table3.csv", dtype=str, index_col=[0, 1]).loc["a"]
    assert table.loc["most frequent prediction"].tolist() == ["a class of a ve…", "dog"]
    assert table.loc["its share"].tolist() == ["100.0", "50.0"]
    assert table.loc["entropy"].tolist() == ["0.00", "1.00"]


def test_what_is_predicted_of_an_image_all_masked_is_a_footnote(tmp_path):
    paths = write(tmp_path, "a", "original", correct=(9,))
    for fill, mode in product(FILLS, ("keep", "drop")):
        paths += write(tmp_path, "a", mode, 50.0, fill=fill)
    _tables(paths, output=tmp_path)
    found = pd.read_csv(tmp_path / "accuracy.csv").set_index("fill")
    found = found[found["mask"] != "random"]
    assert found.loc["black", "blank_predicted"].tolist() == [CLASS_NAMES[2]] * 2
    assert found.loc["black", "blank_probability"].tolist() == [62.5] * 2
    assert found.loc["image-mean", "blank_probability"].isna().all()
    text = (tmp_path / "table1.md").read_text()
    assert text.count("all masked, fill") == 1
    assert "a predicts a class of a very long name of an image all masked, fill black" in text
    assert "62.5 %" in text


def test_no_better_than_chance_is_a_footnote(tmp_path):
    paths = write(tmp_path, "poor", "original", correct=(5,), n=40, wrong=(1, 2, 3, 4, 5))
    paths += write(tmp_path, "good", "original", correct=(35,), n=40)
    paths += write(tmp_path, "poor", "keep", 50.0)
    _tables(paths, output=tmp_path)
    for kind in ("md", "html"):
        text = (tmp_path / f"table1.{kind}").read_text()
        assert "poor is right about 12.5 % of 40 original images, no better than chance" in text
        assert "good is right" not in text


def test_files_of_other_steps_are_named(tmp_path):
    other = tmp_path / "index.parquet"
    arrays.write_records(other, pd.DataFrame({"name": ["a"]}), {"step": "index"})
    for read in (collect, read_readings):
        with pytest.raises(InputError, match=r"index\.parquet: no records of `igmask evaluate`"):
            read([other])


def test_networks_may_be_called_like_what_pandas_takes_for_nothing(tmp_path):
    path = tmp_path / "comparisons.csv"
    path.write_text("model,first,second,difference\nNA,None,nan,1.5\n01,1e3,,\n")
    found = arrays.read_table(path, "model", "difference")
    assert found["model"].tolist() == ["NA", "01"]
    assert found["first"].tolist() == ["None", "1e3"]
    assert found["difference"].isna().tolist() == [False, True]
    with pytest.raises(InputError, match=r"comparisons.csv: not a table of igmask: it has no .* p"):
        arrays.read_table(path, "model", "p")


def test_several_fills_have_blocks_of_their_own(tmp_path):
    paths = write(tmp_path, "a", "original", correct=(9,))
    for fill, right in (("black", 3), ("mean", 6)):
        paths += write(tmp_path, "a", "keep", 50.0, fill=fill, correct=(right, 1))
    wide = widen(collect(paths).accuracy)
    assert wide.loc[("a, black", "top-1")].tolist() == ["90.0", "30.0"]
    assert wide.loc[("a, mean", "top-1")].tolist() == ["90.0", "60.0"]


def test_table_3_takes_the_p_nearest_to_50(tmp_path):
    paths = write(tmp_path, "a", "original", correct=(9,))
    for mode, p in product(("keep", "drop"), (80.0, 40.0)):
        paths += write(tmp_path, "a", mode, p)
    _tables(paths, output=tmp_path)
    assert "keep 40 beside drop 40" in (tmp_path / "table3.md").read_text()


def test_one_mode_alone_gives_all_tables(tmp_path):
    paths = write(tmp_path, "a", "original", correct=(9,)) + write(tmp_path, "a", "drop", 30.0)
    _tables(paths, output=tmp_path)
    assert "original" in (tmp_path / "table1.md").read_text()
    assert "drop 30 %" in (tmp_path / "table3.md").read_text()


def test_fewer_class_folders_than_classes_are_a_footnote(tmp_path):
    [path] = write(tmp_path, "a", "original", correct=(9,))
    records, settings = arrays.read_records(path)
    settings |= {"dataset": {"source": "folder"}, "classes": ["cat", "dog"], "n_classes": 1000}
    arrays.write_records(path, records, settings)
    keep = write(tmp_path, "b", "keep", 50.0)
    _tables([path, *keep], output=tmp_path)
    text = (tmp_path / "table1.md").read_text()
    assert "a has 1000 classes, and the dataset 2 class folders" in text
    assert "b has" not in text


def test_skipped_images_are_a_footnote(tmp_path):
    skipped = [["a <b>.jpg", "not an image"]]
    paths = write(tmp_path, "a", "original", correct=(9,), skipped=skipped)
    paths += write(tmp_path, "a", "keep", 50.0, skipped=skipped)
    _tables(paths, output=tmp_path)
    assert "1 images were skipped: a <b>.jpg" in (tmp_path / "table1.md").read_text()
    assert "a &lt;b&gt;.jpg (not an image)" in (tmp_path / "table1.html").read_text()


def made_by(name="resnet50", mode="original", p=None, **changes):
    settings = {
        "model": {
            "source": name,
            "weights": "IMAGENET1K_V1",
            "size": 299 if name == "inception_v3" else 224,
            "resize": 342 if name == "inception_v3" else 256,
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "dataset": {"source": "csv"},
        "n_classes": 1000,
        "classes": [str(i) for i in range(1000)],
        "class_names": [str(i) for i in range(1000)],
        "mode": mode,
        "p": p,
        "fill": "black",
        "by": "mass",
        "side": 3,
        "attribution": {
            "of": "probability",
            "target": "predicted",
            "baseline": "black",
            "rule": "right",
            "n_steps": 50,
        },
    }
    return settings | changes


def test_published_accuracies_of_originals_are_near_what_torchvision_documents_now():
    for name in ("vgg16", "inception_v3", "resnet50", "densenet121"):
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        documented = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        found, low, high = published_top1(made_by(name), n_images=N_IMAGES)
        assert found == pytest.approx(
            documented, abs=0.22
        )  # now; the publication has those of 2019
        expected = binomtest(round(found * 500), N_IMAGES).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_published_values_stand_beside_the_same_experiment_only():
    keep, drop = made_by(mode="keep", p=50.0), made_by(mode="drop", p=50.0)
    assert published_top1(keep, n_images=N_IMAGES)[0] == 1.73
    assert published_top1(drop, n_images=N_IMAGES)[0] == 22.5
    assert published_top1(keep | {"p": 90.0}, n_images=N_IMAGES)[0] == 46.97
    assert published_top1(made_by(), n_images=1000) is None
    for changes in (
        {"p": 60.0},
        {"fill": "mean"},
        {"by": "count"},
        {"side": 1},
        {"classes": ["cat"]},
        {"model": keep["model"] | {"weights": "IMAGENET1K_V2"}},
        {"model": keep["model"] | {"size": 64, "resize": 73}},
        {"model": keep["model"] | {"mean": [0.0, 0.0, 0.0]}},
        {"attribution": keep["attribution"] | {"baseline": "white"}},
        {"attribution": keep["attribution"] | {"of": "logit"}},
        {"attribution": keep["attribution"] | {"rule": "adaptive"}},
        {"attribution": keep["attribution"] | {"skip": 0.1}},
    ):
        assert published_top1(keep | changes, n_images=N_IMAGES) is None


def test_published_values_reach_the_tables(tmp_path):
    settings = made_by("vgg16") | {"step": "evaluate", "name": "vgg", "skipped": []}
    correct = [True] * 25_000 + [False] * 25_000
    names = [f"{i}.png" for i in range(N_IMAGES)]
    records = pd.DataFrame({"name": names, "draw": 0, "correct": correct, "area_kept": 1.0})
    records = records.assign(label=1, predicted=records["correct"].astype(int))
    arrays.write_records(tmp_path / "a.parquet", records, settings | {"mask": "none"})
    settings |= made_by("vgg16", "keep", 50.0) | {"score": "positive"}
    settings["completeness"] = {"mean": 0.1, "median": 0.1, "max": 1.0, "n_without_change": 0}
    for mask in ("selection", "random"):
        arrays.write_records(tmp_path / f"{mask}.parquet", records, settings | {"mask": mask})
    _tables(tmp_path.glob("*.parquet"), output=tmp_path)
    table = pd.read_csv(tmp_path / "table1.csv", dtype=str, index_col=[0, 1])
    assert table.loc[("vgg", "published")].tolist() == ["71.59", "0.91"]
    assert table.loc[("vgg", "its interval")].tolist() == ["71.19–71.98", "0.83–1.00"]
    assert "S. Saito" in (tmp_path / "table1.md").read_text()


def test_rows_that_come_back_to_a_model_say_so():
    wide = pd.DataFrame({"keep 50 %": ["1", "2", "3"]})
    keys = [("a", "top-1"), ("b", "top-1"), ("a", "area kept")]
    wide.index = pd.MultiIndex.from_tuples(keys, names=["model", ""])
    rows = render(wide, title="t", notes=[])["md"].splitlines()[4:7]
    assert [row.split("|")[1].strip() for row in rows] == ["a", "b", "a"]
