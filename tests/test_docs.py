"""What README, docs, configurations and profiles show is so: commands, links, functions, map."""

import re
import shlex
import shutil
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from running import ROOT, run_snakemake

from igmask import arrays, cli
from igmask.plan import Workflow
from igmask.report.tables import collect
from igmask.steps import attribute, evaluate, index, mask, prepare
from igmask.steps.masked.metrics import METRICS

PAGES = ["README.md", "Snakefile", "config/README.md", *map(str, Path(ROOT).glob("docs/*.md"))]
PAGES += [*map(str, Path(ROOT).glob("config/*.yaml")), "profiles/slurm/profile.yaml"]

STUDY = """
models: {vgg: {source: igmask.zoo:small_vgg, size: 64, weights: vgg.pth}}
dataset: {source: demo, n_images: 10}
curves: {points: 3}
statistics: {replicates: 100}
"""


def shown(page):
    """The pieces of code of a page: fenced, indented or between backquotes; comments of others."""
    text = (ROOT / page).read_text("utf-8").replace("\\\n", " ")
    if not str(page).endswith(".md"):
        return re.findall(r"(?m)^ *# *(.*)", text)
    blocks = re.findall(r"(?s)```.*?```", text)
    prose = re.sub(r"(?s)```.*?```", "", text)
    lines = "".join(blocks).splitlines() + re.findall(r"(?m)^    (.*)", prose)
    return lines + re.findall(r"`([^`]+)`", prose)


def commands(program):
    """Every command of a program with what follows its name, as the pages show it."""
    found = set()
    for code in (code for page in PAGES for code in shown(page)):
        line = re.sub(r"( #|\s{3,}(?![-\s])).*", "", " ".join(code.split("\n")))
        for part in re.split('&&|;|"', line):
            if re.match(rf"{program} +(-|[a-z]+)", part.strip()):
                found.add(" ".join(part.split()))
    return sorted(found)


def resources(folder, *arguments):
    """Return {rule: {resource: value}} of a dry run; --executor dryrun needs no Slurm."""
    words = ["--dry-run", "--nocolor", *map(str, arguments)]
    if "--executor" not in words and any("slurm" in word for word in words):
        words += ["--executor", "dryrun"]
    if "-s" not in words:
        words += ["-s", str(ROOT / "Snakefile")]
    done = run_snakemake(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    pattern = r"^rule (\w+):\n(?:    .*\n)*?    resources: (.*)"
    rules = re.findall(pattern, done.stdout + done.stderr, re.MULTILINE)
    return {rule: dict(re.findall(r"(\w+)=([^,]+)", says)) for rule, says in rules}


@pytest.fixture
def folder(tmp_path):
    """A working directory with a small study under the names of the shipped ones."""
    for name in (
        "config.yaml",
        *(f"config/{name}.yaml" for name in ("cifar10", "controls", "imagenet", "photos")),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(STUDY)
    (tmp_path / "vgg.pth").touch()
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    return tmp_path


def test_commands_are_found():
    assert "snakemake --cores all --configfile config/cifar10.yaml" in commands("snakemake")
    assert "igmask verify --remove" in commands("igmask")


@pytest.mark.parametrize("line", commands("snakemake"))
def test_snakemake_takes_every_command_of_the_docs(line, folder):
    _, *words = shlex.split(line)
    # Whole as they are shown, but for places, for cores where a page says options alone, and for a
    # report, which needs results.
    words = [word.replace("/igmask/", f"{ROOT}/") for word in words if word != "report.html"]
    words = [word for word in words if word != "--report"]
    if not any(word in words for word in ("--cores", "--workflow-profile", "--unlock")):
        words += ["--cores", "1"]
    resources(folder, *words)


@pytest.mark.parametrize("line", commands("igmask"))
def test_igmask_takes_every_command_of_the_docs(line, monkeypatch, folder):
    monkeypatch.chdir(folder)
    _, name, *words = shlex.split(line)
    command = cli.app.commands[name]
    if words or line in ("igmask verify", "igmask bench"):  # others are mentioned
        command.make_context(name, words)


def test_the_command_line_changes_one_figure_of_a_cluster_and_leaves_the_others(folder):
    profile = ("--workflow-profile", "profiles/slurm")
    before = resources(folder, *profile)
    after = resources(folder, *profile, "--set-resources", "attribute:runtime=600")
    assert before["attribute"]["runtime"] != "600"
    before["attribute"]["runtime"] = "600"
    assert after == before
    assert all({"mem_mb", "runtime"} <= set(of) for rule, of in after.items() if rule != "all")


def test_each_attempt_asks_for_more(folder):
    first, third = (resources(folder, "--cores", 1, "--attempt", n) for n in (1, 3))
    for rule in set(first) - {"all"}:
        for name in ("mem_mb", "runtime"):
            assert int(third[rule][name]) == 3 * int(first[rule][name])


def test_the_commented_lines_of_the_slurm_profile_are_right(folder):
    path = folder / "profiles/slurm/profile.yaml"
    text = path.read_text()
    before, line, after = text.partition("# For all jobs")
    profile = before + line + re.sub(r"(?m)^# (?=(default|set)-resources:|  )", "", after)
    assert set(yaml.safe_load(profile)) - set(yaml.safe_load(text)) == {
        "default-resources", "set-resources",
    }  # fmt: skip
    path.write_text(profile)
    found = resources(folder, "--workflow-profile", "profiles/slurm")
    for rule in ("attribute", "evaluate"):
        expected = {"gpu": "0", "gres": "gpu:1", "slurm_partition": "gpu", "slurm_account": "mine"}
        assert expected.items() <= found[rule].items()
    assert found["prepare"]["slurm_partition"] == "short"


def blocks(page, language):
    """The fenced blocks of a page in a language."""
    found = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", (ROOT / page).read_text("utf-8"))
    return [text for of, text in found if of == language]


def described(block):
    """The files that a map has: a line names some, and what is indented further is below it."""
    above = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        del above[depth:]
        if names[0].endswith("/"):
            above += names
        elif above[:1] in (["igmask/"], ["kernels/"]):
            yield from ("".join([*above, f"{name}.py"]) for name in names)


def test_the_map_names_every_module_once_and_no_other():
    [block] = [text for text in blocks("docs/map.md", "") if "imports run down" in text]
    there = [*(ROOT / "kernels").glob("*.py"), *(ROOT / "igmask").rglob("*.py")]
    there = {path.relative_to(ROOT).as_posix() for path in there if path.stem != "__init__"}
    expected = sorted(path for path in there if not path.startswith("igmask/kernels/"))
    assert sorted(described(block)) == expected


def test_links_and_paths_lead_somewhere():
    for page in (ROOT / path for path in PAGES if path.endswith(".md")):
        text = page.read_text("utf-8")
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert "://" in link or (page.parent / link).exists(), f"{page}: {link}"
        for path in re.findall(r"\b(?:igmask|kernels|tests|benchmarks)/[\w/]+\.(?:py|sh)\b", text):
            assert (ROOT / path).exists(), f"{page}: {path}"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The settings of a study of the functions that the docs show, in a folder with them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    [short], [whole, *_] = (
        blocks("docs/using.md", "python")[:1],
        blocks("docs/extending.md", "python"),
    )
    Path("mine.py").write_text(short + whole)
    draw, rows = np.random.default_rng(0), []
    for i in range(4):
        file = BytesIO()
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "jpeg")
        rows.append({"file": f"{i}.jpg", "label": i % 2, "jpeg": file.getvalue()})
    pd.DataFrame(rows).to_parquet("photos.parquet")
    arguments = {"depth": 8, "num_classes": 2}
    network = {"source": "igmask.zoo:cifar_resnet", "arguments": arguments, "size": 32}
    settings, shown = (
        yaml.safe_load(blocks(page, "yaml")[0]) for page in ("docs/extending.md", "docs/using.md")
    )
    for kind, names in shown["masking"].items():
        settings["masking"][kind] = list(dict.fromkeys(settings["masking"][kind] + names))
    settings["attribution"]["n_steps"] = 2
    settings |= {"models": {"one": network | {"weights": "none"}}, "selection": {"p": [50]}}
    yield settings
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    "method",
    [pytest.param("integrated-gradients", marks=pytest.mark.slow), "mine:gradient_by_input"],
)
def test_functions_that_the_docs_show_go_through_a_study(method, own, monkeypatch):
    namespace = {}
    exec(blocks("docs/extending.md", "python")[1], namespace)
    monkeypatch.setitem(METRICS, "surprise", namespace["surprise"])
    own["attribution"]["method"] = method
    flow, one = Workflow(own), SimpleNamespace(model="one", geometry="32", shard="1-of-1")
    listed, paths = Path(flow.folder, "index.parquet"), (flow.images, flow.scores, flow.masks)
    [images], [scores], masks = (list(map(Path, of(one))) for of in paths)
    records = list(map(Path, flow.records(one)))
    index.index(listed, flow.index(one))
    prepare.prepare(listed, images, flow.prepare(one))
    attribute.attribute(images, scores, flow.attribute(one))
    mask.mask([scores], masks[0].parent, flow.mask(one))
    evaluate.evaluate([images], records[0].parent, flow.evaluate(one), masks=masks, scores=[scores])
    accuracy = collect(records).accuracy
    assert set(accuracy["fill"].dropna()) == {"black", "mine:grey", "mine:blurred"}
    controls = {"random", "mine:upside_down", "mine:mirrored"}
    assert set(accuracy["mask"]) == {"none", "selection", *controls}
    bits = arrays.read_records(records[0])[0]["probability_label"].map(np.log2)
    assert accuracy["mean_surprise"].iloc[0] == pytest.approx(-bits.mean(), rel=1e-4)
