"""Every command that README, docs, configurations and profiles show is one that can be given."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from running import ROOT, run_snakemake

from igmask import cli

PAGES = ["README.md", "Snakefile", *map(str, Path(ROOT).glob("docs/*.md"))]
PAGES += [*map(str, Path(ROOT).glob("config/*.yaml")), "profiles/slurm/profile.yaml"]

STUDY = """
models: {vgg: {source: igmask.zoo:small_vgg, size: 64, weights: vgg.pth}}
dataset: {source: demo, n_images: 10}
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
    for name in ("config.yaml", "config/cifar10.yaml", "config/imagenet.yaml"):
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
