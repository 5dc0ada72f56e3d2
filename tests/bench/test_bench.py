"""The benchmark at its smallest: that it runs, and that its pages say what was measured."""

import contextlib
import json

import numpy as np
import pytest
import torch

from igmask.bench import attributions as bench
from igmask.bench import run as bench_run
from igmask.bench.attributions import summary, to_markdown, write
from igmask.bench.contestants import CONTESTANTS, FOUR, ON_A_GPU, Contestant, Setting, build
from igmask.engine.ig import integrated_gradients
from igmask.engine.ready import prepare
from igmask.errors import InputError


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "_MEMORY_STEPS", (10,))
        (found,) = bench.measure(
            ("resnet20",),
            n_images=2,
            n_steps=4,
            repeats=1,
            budget_s=1,
            device="cpu",
            threads=1,
            skip=("captum gauss-legendre", "captum right, *", "bare passes", "igmask bf16"),
        )
    return found


def test_both_compute_the_same_attributions(result):
    rows = {row["contestant"]: row for row in result["rows"]}
    assert set(rows) == {"igmask", "captum right"}
    for row in rows.values():
        assert 0 < row["ms_fastest"] <= row["ms_per_step"] <= row["ms_slowest"]
        assert row["images_per_s"] == pytest.approx(1000 / (4 * row["ms_per_step"]))
        assert (row["precision"], row["engine"]) == ("fp32", "eager")
        assert row["error"] < 1e-2
        assert row["iou_50"] > 0.9
        assert row["peak_bytes_10_steps"] > 0
    ours, theirs = rows["igmask"], rows["captum right"]
    assert ours["relative_completeness"] == pytest.approx(theirs["relative_completeness"], rel=0.05)
    assert theirs["batch_size"] in (2, 4, 8)


def test_what_fails_is_a_row_that_says_why(monkeypatch):
    ours = Contestant("igmask", "igmask")
    monkeypatch.setattr(bench, "CONTESTANTS", (ours, Contestant("igmask tf32", "igmask", "tf32")))
    options = {"n_images": 1, "n_steps": 2, "repeats": 1, "budget_s": 1, "skip": ("memory",)}
    (found,) = bench.measure(("resnet20",), device="cpu", threads=1, **options)
    first, second = found["rows"]
    assert first["ms_per_step"] > 0
    assert "ms_per_step" not in second
    page = to_markdown({"machine": MACHINE, "rows": [r | {"command": ""} for r in found["rows"]]})
    why = "InputError: precision tf32 needs a GPU, and the images are on the CPU"
    assert f"| resnet20 | igmask tf32 | failed: {why} |" in page


def test_precision_and_engine_reach_igmask(monkeypatch):
    asked = []

    def recorded(network, *arguments, **options):
        asked.append((network.precision, network.engine, options["precision"], options["engine"]))
        network.engine = "eager"
        return integrated_gradients(network, *arguments, **options | {"engine": "eager"})

    monkeypatch.setattr(bench_run, "integrated_gradients", recorded)
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    contestant = Contestant("igmask bf16 compile", "igmask", "bf16", "compile")
    assert np.isfinite(run_here(contestant)["values"]).all()
    assert asked == [("bf16", "compile") * 2]


def test_captum_goes_without_its_delta_where_that_is_said(monkeypatch):
    from captum.attr import IntegratedGradients

    asked, attribute = [], IntegratedGradients.attribute

    def recorded(*arguments, **options):
        asked.append(options["return_convergence_delta"])
        return attribute(*arguments, **options)

    monkeypatch.setattr(IntegratedGradients, "attribute", recorded)
    kinds = [c for c in CONTESTANTS if c.like.startswith("captum ") or c.name == "captum right"]
    found = [run_here(contestant) for contestant in kinds]
    assert asked == ["relative_completeness" in run for run in found] == [True] + 3 * [False]
    first = found[0]["values"]
    for run in found[1:]:
        assert np.linalg.norm(run["values"] - first) < 1e-2 * np.linalg.norm(first)


@pytest.mark.parametrize("like", ["captum", "captum tuned"])
def test_captum_gets_network_and_images_in_the_precision(like):
    exact, found = (run_here(Contestant("", like, p))["values"] for p in ("fp32", "bf16"))
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 1


def test_bare_passes_are_of_the_whole_network():
    network, images, _ = build(Setting("resnet20", 2, 4, "cpu", 1))
    split = prepare(network, images, precision="fp32").split
    assert split.n_folded > 0
    found = bench_run._Whole(split)(images)
    torch.testing.assert_close(found, network(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_bare_passes_are_counted_in_every_precision(precision):
    assert run_here(Contestant("", "bare", precision))["n_pairs"] == 4


def run_here(contestant):
    """What a contestant finds, without a process of its own."""
    with torch.random.fork_rng():
        return bench_run.Run(Setting("resnet20", 1, 4, "cpu", 1), contestant).run(1)


def test_on_a_gpu_contestants_answer_from_this_process_and_give_its_memory_back(monkeypatch):
    emptied = []

    class Run:
        def __init__(self, _, contestant):
            if contestant.name == "broken":
                raise torch.OutOfMemoryError("for its network")

        def run(self, n_images):
            if n_images > 2:
                raise ValueError("too many")
            return n_images

    monkeypatch.setattr(bench_run, "Run", Run)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    setting = Setting("resnet20", 2, 4, "cuda", 1)
    with bench_run.worker(setting, Contestant("", "igmask")) as ask:
        assert ask("run", 2) == 2
        with pytest.raises(bench_run.Failed, match="ValueError: too many"):
            ask("run", 3)
        assert not emptied
    assert emptied
    message = "OutOfMemoryError: for its network"
    with (
        bench_run.worker(setting, Contestant("broken", "igmask")) as ask,
        pytest.raises(bench_run.Failed, match=message),
    ):
        ask("run", 2)


def test_on_a_gpu_every_precision_has_its_captum_and_one_works_at_a_time(monkeypatch):
    values, at_work, most = np.ones((1, 3, 6, 6)), [], []

    @contextlib.contextmanager
    def worker(_, contestant):
        def ask(question, *_):
            if question == "run" and contestant.name == "captum fp16":
                raise bench_run.Failed("FloatingPointError: NaN or infinite attributions")
            found = {"seconds": 1, "n_pairs": 100, "peak_bytes": 2**30, "values": values}
            answers = {"tune": 16, "run": found | {"relative_completeness": 0.1}, "memory": 2**20}
            return answers.get(question)

        at_work.append(contestant.name)
        most.append(len(at_work))
        yield ask
        at_work.remove(contestant.name)

    monkeypatch.setattr(bench, "worker", worker)
    setting, everyone = Setting("vgg16", 2, 50, "cuda", 1), CONTESTANTS + ON_A_GPU
    measured = bench._measure_model(setting, 3, 60, everyone, (10, 1000))
    rows = [row for few in measured for row in few]
    assert [row["contestant"] for row in rows] == [contestant.name for contestant in everyone]
    assert max(most) == 1
    assert [row["contestant"] for row in rows if "failed" in row] == ["captum fp16"]
    assert rows[0]["peak_bytes_1000_steps"] == 2**20
    assert rows[0]["iou_50"] == 1

    machine = MACHINE | {"kind": "cuda"}
    page = to_markdown({"machine": machine, "rows": [r | {"command": ""} for r in rows]})
    for engine in ("", " compile", " cudagraph"):
        assert f"| vgg16 bf16{engine} | 10.00 ms | 1.00 × |  |  | 1.00 × |" in page
        assert f"| vgg16 fp16{engine} | 10.00 ms |  |  |  | 1.00 × |" in page
    assert "| vgg16 tf32 | 10.00 ms | 1.00 × |  |  | 1.00 × |" in page
    for how in ("", " fp32 compile", " fp32 cudagraph"):
        assert f"| vgg16{how} | 10.00 ms | 1.00 × | 1.00 × | 1.00 × | 1.00 × |" in page
    assert "| vgg16 | igmask bf16 | 10.00 | 10.00 – 10.00 | 2.00 | 3 | 16 |" in page
    assert "| vgg16 | captum fp16 | failed: FloatingPointError" in page
    assert page.count(" 1024 MiB |") == len(rows) - 1


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
    rows += [row("lean", "captum lean", 18), row("kept", "captum kept", 14)]
    (found,) = summary(rows)
    assert found["speedup"] == 2
    assert found["speedup_over_lean"] == 1.8
    assert found["speedup_over_kept"] == found["speedup_over_best"] == 1.4
    assert found["of_the_limit"] == 1.25
    rows = [{**r, "model": model} for model in FOUR for r in rows[:1] + rows[2:]]
    page = to_markdown({"machine": MACHINE, "rows": rows})
    assert "Geometric mean of the four: 2.00 times, 1.40 at its best." in page
    assert "| vgg16 | 10.00 ms | 2.00 × | 1.80 × | 1.40 × | 1.40 × |  |" in page


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


def test_precisions_are_compared_with_their_own():
    rows = [row("igmask", "igmask", 10), row("captum right", "captum", 30)]
    rows += [row("igmask bf16", "igmask", 5), row("captum bf16", "captum", 8)]
    rows += [row("igmask fp16", "igmask", 4), row("captum fp16", "captum", 8) | {"failed": "!"}]
    for found in rows:
        found["precision"] = found["contestant"].partition(" ")[2].replace("right", "") or "fp32"
    ours, in_bf16 = summary(rows)  # fp16 has nothing to be compared with
    assert (ours["speedup"], in_bf16["speedup"]) == (3, 1.6)
    assert in_bf16["contestant"] == "igmask bf16"


@pytest.mark.parametrize("pattern", ["igmask", "igmask tf32", "*compile"])
def test_what_there_is_not_cannot_be_skipped(pattern):
    options = {"n_images": 1, "n_steps": 1, "repeats": 1, "budget_s": 1, "skip": (pattern,)}
    with pytest.raises(InputError, match=r"unknown contestants .*choose from captum right"):
        next(bench.measure(("resnet20",), device="cpu", threads=1, **options))


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


def test_captum_may_have_the_batch_size_of_igmask(monkeypatch):
    tried = []

    def attribute(self, n_images, n_steps):
        tried.append(self._batch_size)
        return {}

    run = bench_run.Run(Setting("resnet20", 4, 50, "cpu", 1), Contestant("captum right", "captum"))
    monkeypatch.setattr(bench_run.Run, "_attribute", attribute)

    def timed(work, *, on_gpu):
        work()
        return abs(100 - run._batch_size), None

    monkeypatch.setattr(bench_run, "timed", timed)
    assert run.tune(None, 64) == 64
    assert tried == [2, 4, 8, 16, 32, 64]
    assert run.tune(None, None) == 32
    assert run.tune(7, 64) == 7
