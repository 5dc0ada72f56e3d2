"""The kernels' benchmark at its smallest: that it runs, and that what is wrong gets no time."""

import json

import pytest
import torch
from click.testing import CliRunner

from igmask.bench import cases as bench_cases
from igmask.bench.cases import KERNELS
from igmask.bench.kernels import measure, to_markdown, write
from igmask.cli import app
from igmask.errors import InputError


def measured(*names, **options):
    """The benchmark of some kernels, for one image and two steps on the CPU."""
    skip = tuple(name for name in KERNELS if name not in names)
    *_, result = measure(n_images=1, n_steps=2, device="cpu", skip=skip, **options)
    return result


@pytest.fixture(scope="module")
def result():
    return measured(*KERNELS)


def test_every_kernel_is_right_and_timed_beside_pytorch(result):
    rows = result["rows"]
    assert {row["kernel"] for row in rows} == set(KERNELS)
    assert {row["dtype"] for row in rows} == {"fp32", "bf16", "fp16"}
    assert {row["layout"] for row in rows} == {"NCHW", "channels-last"}
    for row in rows:
        for found in (row, row["eager"]):
            assert found["correct"], found
            assert 0 < found["ms_fast"] <= found["ms"] <= found["ms_slow"]
        assert row["gb_per_s"] == pytest.approx(row["n_bytes"] / row["ms"] / 1e6)
        assert row["of_copy"] == pytest.approx(row["gb_per_s"] / result["copy_gb_per_s"])
        assert "compiled" not in row  # on a CPU it would take minutes


def n_bytes(result, kernel, dtype):
    """Of the first shape."""
    return next(
        row["n_bytes"]
        for row in result["rows"]
        if row["kernel"] == kernel and row["dtype"] == dtype
    )


def test_bytes_by_hand(result):
    # one image, two steps; sides are an eighth of the networks'
    ends, windows = 2 * 64 * 14 * 14 * 4, 2 * 64 * 7 * 7
    assert n_bytes(result, "pooled_points", "bf16") == ends + windows * (2 + 1)
    assert n_bytes(result, "accumulate_pooled_", "fp32") == ends + windows * (4 + 1)
    assert n_bytes(result, "path_points relu", "fp32") == 2 * 64 * 28 * 28 * 4 * (1 + 1)
    image = 3 * 28 * 28
    assert n_bytes(result, "accumulate_", "fp16") == 2 * image * 4 + 2 * image * 2
    # eight images of 10 × 10 squares: image, baseline, slope; two parts a square
    assert n_bytes(result, "attribution_parts", "fp32") == 8 * (3 * image * 4 + 2 * 100 * 4)
    assert n_bytes(result, "occluded_input", "bf16") == 8 * (image + 13 + image * 2)
    assert n_bytes(result, "select_bits", "fp32") == 8 * (5625 * 4 + 4 * 704 + 1)


def wrong_points(real):
    return lambda *given, **options: real(*given, **options) + 0.01


def unwritten_points(real):
    def points(*given, **options):
        found = real(*given, **options)
        found[..., -1] = torch.nan
        return found

    return points


def wrong_places(real):
    def places(*given, **options):
        points, taken = real(*given, **options)
        taken[0, 0, 0, 0] += 1
        return points, taken

    return places


def one_bit_off(real):
    def bits(*given):
        found, finite = real(*given)
        found[0, 0, 0] ^= 1
        return found, finite

    return bits


def too_few(real):
    return lambda *given, **options: real(*given, **options)[:-1]


BROKEN = {
    "points": ("path_points", "path_points", wrong_points),
    "unwritten": ("path_points silu", "path_points", unwritten_points),
    "too few": ("path_points", "path_points", too_few),
    "places": ("pooled_points", "pooled_points", wrong_places),
    "bits": ("select_bits", "_select_bits", one_bit_off),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_wrong_has_no_time(how, monkeypatch):
    kernel, function, broken = BROKEN[how]
    monkeypatch.setattr(bench_cases, function, broken(getattr(bench_cases, function)))
    result = measured(kernel)
    for row in result["rows"]:
        assert not row["correct"]
        assert {"ms", "ms_fast", "gb_per_s", "eager"}.isdisjoint(row)
    page = to_markdown(result | {"command": ""})
    assert page.count(" | wrong |  |  |  |  |  | ") == len(result["rows"])
    json.loads(json.dumps(result, allow_nan=False))


def test_what_fails_says_why_and_others_go_on(monkeypatch, tmp_path):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no memory | at all\nand more")

    monkeypatch.setattr(bench_cases, "path_points", full)
    result = measured("path_points", "select_bits")
    by_kernel = {row["kernel"]: row for row in result["rows"]}
    assert by_kernel["select_bits"]["ms"] > 0
    assert "ms" not in by_kernel["path_points"]
    page = write(result, tmp_path, "igmask bench kernels")[1].read_text()
    assert " | failed: OutOfMemoryError: no memory / at all |" in page


def test_beside_what_torch_compiles(monkeypatch):
    compile = torch.compile

    def eagerly(expression, *, fullgraph, dynamic):
        return compile(expression, fullgraph=fullgraph, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch, "compile", eagerly)  # traced, with no need of a C++ compiler
    result = measured("accumulate_", "select_bits", compiled=True)
    for row in result["rows"]:
        assert row["compiled"]["correct"]
        assert row["compiled"]["ms"] > 0


def test_pages_are_written_beside_each_other(result, tmp_path):
    paths = write(result, tmp_path, "igmask bench kernels")
    assert [path.name for path in paths] == [f"kernels-cpu.{s}" for s in ("json", "md", "png")]
    found = json.loads(paths[0].read_text())
    assert found == result | {"command": "igmask bench kernels"}
    assert {"device", "versions", "date"} <= set(found["machine"])
    page = paths[1].read_text()
    assert "no figures of a GPU" in page
    assert "\n    igmask bench kernels\n" in page
    assert "| pooled_points | 64×14×14 | bf16 | channels-last | 0.12 |" in page
    on_gpu = result | {"machine": result["machine"] | {"kind": "cuda"}, "command": ""}
    assert "no figures of a GPU" not in to_markdown(on_gpu)


def test_by_hand(tmp_path):
    skip = [word for name in KERNELS if name != "path_points" for word in ("--skip", name)]
    words = ["bench", "kernels", "--device", "cpu", "--n-images", "1", "--n-steps", "2", *skip]
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"kernels-cpu.{kind}" for kind in ("json", "md", "png")
    ]


def test_what_there_is_not_is_named(tmp_path):
    with pytest.raises(InputError, match=r"unknown kernels \['paths'\]; choose from path_points"):
        next(measure(n_images=1, n_steps=1, device="cpu", skip=("paths",)))
    for words, named in {
        ("kernels", "--repeats", "3"): "--repeats has no place in the benchmark of kernels",
        ("kernels", "--budget", "3"): "--budget has no place in the benchmark of kernels",
        ("resnet20", "--compile"): "--compile has no place in the benchmark of attributions",
    }.items():
        done = CliRunner().invoke(app, ["bench", *words, "-o", str(tmp_path)])
        assert done.exit_code == 2
        assert named in done.output
    done = CliRunner().invoke(app, ["bench", "kernels", "resnet20", "-o", str(tmp_path)])
    assert isinstance(done.exception, InputError)
    assert "['kernels']" in str(done.exception)
