"""The benchmark at its smallest: that it runs, and that its pages say what was measured."""

import json

import pytest

from igmask import bench
from igmask.bench_page import summary, to_markdown, write
from igmask.errors import InputError


@pytest.fixture(scope="module")
def result():
    (found,) = bench.measure(
        ("resnet20",),
        n_images=2,
        n_steps=4,
        repeats=1,
        budget_s=1,
        device="cpu",
        threads=1,
        skip=("captum gauss-legendre", "captum right, tuned", "bare passes", "igmask bf16"),
    )
    return found


def test_both_compute_the_same_attributions(result):
    rows = {row["contestant"]: row for row in result["rows"]}
    assert set(rows) == {"igmask", "captum right"}
    for row in rows.values():
        assert 0 < row["ms_fastest"] <= row["ms_per_step"] <= row["ms_slowest"]
        assert row["error"] < 1e-2
        assert row["iou_50"] > 0.9
        assert row["peak_bytes_10_steps"] > 0
    ours, theirs = rows["igmask"], rows["captum right"]
    assert ours["relative_completeness"] == pytest.approx(theirs["relative_completeness"], rel=0.05)
    assert theirs["batch_size"] in (4, 8)


def row(contestant, like, ms, model="resnet50"):
    return {
        "model": model,
        "contestant": contestant,
        "like": like,
        "n_images": 4,
        "n_steps": 50,
        "ms_per_step": ms,
        "ms_fastest": ms,
        "ms_slowest": ms,
        "n_runs": 1,
        "batch_size": 8,
        "command": "igmask bench",
    }


def test_speedups_are_over_the_faster_of_captums_rules():
    rows = [row("igmask", "igmask", 10), row("bare passes", "bare", 8)]
    rows += [row("right", "captum", 30), row("gauss", "captum", 20), row("t", "captum tuned", 15)]
    (found,) = summary(rows)
    assert found["speedup"] == 2
    assert found["speedup_over_tuned"] == 1.5
    assert found["of_the_limit"] == 1.25
    rows = [{**r, "model": model} for model in bench.FOUR for r in rows[:1] + rows[2:]]
    page = to_markdown({"machine": MACHINE, "rows": rows})
    assert "Geometric mean of the four: 2.00 times." in page
    assert "| vgg16 | 10.00 ms | 2.00 × | 1.50 × |  |" in page


MACHINE = {"device": "a CPU", "kind": "cpu", "threads": 2, "date": "2026-01-01", "versions": {}}


def test_pages_are_written_beside_each_other(result, tmp_path):
    paths = write(result, tmp_path, "igmask bench resnet20")
    assert [path.name for path in paths] == [f"attribution-cpu.{s}" for s in ("json", "md", "png")]
    found = json.loads(paths[0].read_text())
    assert found["rows"] == [row | {"command": "igmask bench resnet20"} for row in result["rows"]]
    assert "    igmask bench resnet20\n" in paths[1].read_text()


def test_other_networks_of_the_same_setting_stay(tmp_path):
    def written(model, n_steps=50):
        rows = [row("igmask", "igmask", 10, model) | {"n_steps": n_steps}]
        path = write({"machine": MACHINE, "rows": rows}, tmp_path, f"igmask bench {model}")[0]
        return [found["model"] for found in json.loads(path.read_text())["rows"]]

    assert written("vgg16") == ["vgg16"]
    assert written("resnet50") == ["vgg16", "resnet50"]
    assert written("vgg16") == ["resnet50", "vgg16"]
    assert written("vgg16", n_steps=10) == ["vgg16"]


def test_an_unknown_network_is_named():
    with pytest.raises(InputError, match="'resnet51'"):
        next(
            bench.measure(
                ("resnet51",),
                n_images=1,
                n_steps=1,
                repeats=1,
                budget_s=1,
                device="cpu",
                threads=1,
            )
        )
