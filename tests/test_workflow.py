"""What the Snakefile asks for."""

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from running import ROOT, snakemake

from igmask.asked import config
from igmask.asked.recipes import STAGES
from igmask.errors import InputError
from igmask.inputs import contents
from igmask.plan import Workflow, code_version
from igmask.readings import Readings

STUDY = {
    "dataset": {"source": "demo", "limit": 3},
    "models": {
        "trained": {"source": "igmask.zoo:small_vgg", "size": 64, "train": {}},
        "tv": {"source": "resnet50", "weights": "IMAGENET1K_V1", "size": 112},
    },
}


@pytest.fixture
def flow():
    return Workflow(STUDY)


def of(model="trained", **wildcards):
    return SimpleNamespace(model=model, **wildcards)


def test_a_limited_dataset_has_a_folder_of_its_own_and_shares_the_weights(flow):
    assert flow.folder == "results/demo-first3"
    assert flow.weights(of()) == ["results/demo/weights/trained.safetensors"]
    assert flow.weights(of("tv")) == []


def test_torchvisions_weights_describe_the_input_even_where_a_size_is_given(flow):
    model = flow.models["tv"]
    assert (model.size, model.resize) == (112, 128)
    assert model.mean == (0.485, 0.456, 0.406)
    assert flow.images(of("tv")) == ["results/demo-first3/images/112-resize128-bilinear/1-of-1.npy"]


@pytest.mark.parametrize(
    ("name", "n_conditions", "n_curves"),
    [
        ("config.yaml", 17, 3),
        ("config/cifar10.yaml", 17, 3),
        ("config/controls.yaml", 1 + 2 * 4 * 4 * 8, 4 * (2 + 1 + 2 * 6)),
        ("config/imagenet.yaml", 17, 3),
    ],
)
def test_the_shipped_configurations_are_valid(name, n_conditions, n_curves, tmp_path, monkeypatch):
    study = yaml.safe_load((ROOT / name).read_text("utf-8"))
    files = [study["dataset"].get(key) for key in ("labels", "classes")]
    files += [m.get("weights") for m in study["models"].values() if ":" in m["source"]]
    monkeypatch.chdir(tmp_path)
    for path in filter(None, files):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    if "root" in study["dataset"]:
        Path(study["dataset"]["root"]).mkdir(parents=True, exist_ok=True)
    flow = Workflow(study)
    assert len(flow.conditions) == n_conditions
    assert len(flow.curves) == n_curves
    sizes = {model.geometry.size for model in flow.models.values()}
    expected = {"config.yaml": {64}, "config/cifar10.yaml": {32}, "config/controls.yaml": {32}}
    assert sizes == expected.get(name, {224, 299})


def test_the_published_experiment_is_the_default_in_every_other_respect():
    study = yaml.safe_load((ROOT / "config" / "imagenet.yaml").read_text("utf-8"))
    assert list(study["models"]) == ["vgg16", "inception_v3", "resnet50", "densenet121"]
    demo = {"dataset": {"source": "demo"}, "models": study["models"]}
    defaults = config.parse(demo)
    for group in ("attribution", "squares", "selection", "masking"):
        given = config.parse(demo | {group: study[group]})
        assert getattr(given, group) == getattr(defaults, group)


def test_conditions_are_modes_times_percents_times_fills(flow):
    names = flow.record_files()
    assert names[0] == "original.parquet"
    assert len(set(names)) == 1 + 2 * 4 * 2
    fine = Workflow(STUDY | {"selection": {"p": [12.5]}, "masking": {"fills": ["image-mean"]}})
    assert fine.record_files()[1:] == [
        f"{mode}-12.5-image-mean{mask}.parquet"
        for mask in ("", "-random")
        for mode in ("keep", "drop")
    ]
    assert fine.masks(of())[0].endswith("/masks/12.5.npy")
    assert fine.records(of())[1].endswith("/models/trained/records/keep-12.5-image-mean.parquet")


def test_names_torchvision_does_not_have_are_found_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("w.pth").touch()
    models = {"a": {"source": "resnt18", "weights": "w.pth", "size": 64}}
    with pytest.raises(InputError, match="no classifier 'resnt18'; did you mean 'resnet18"):
        Workflow(STUDY | {"models": models})


def test_contents_are_those_of_images_weights_and_modules(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("photos/cat/a.jpg", "nets/__init__.py", "w.pth"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    study = {
        "dataset": {"source": "folder", "root": "photos"},
        "models": {"a": {"source": "nets:build", "size": 8, "weights": "w.pth"}},
    }

    def found():
        contents._digest.cache_clear()
        flow = Workflow(study)
        return flow.dataset_contents(of("a")), flow.model_contents(of("a"))

    before = found()
    Path("photos/.DS_Store").touch()
    Path("photos/cat/notes.txt").touch()
    assert found() == before
    Path("photos/cat/b.jpg").touch()
    assert found()[0] != before[0]
    Path("photos/cat/b.jpg").unlink()
    Path("photos/dog").mkdir()
    assert found()[0] != before[0]
    Path("nets/__init__.py").write_text("build = 3")
    after = found()
    assert after[1] != before[1]
    Path("w.pth").write_text("other")
    assert found()[1] != after[1]


def test_a_rule_is_told_the_versions_of_every_step_that_it_runs():
    rules = re.split(r"^rule (\w+):", (ROOT / "Snakefile").read_text("utf-8"), flags=re.M)
    n_versioned = 0
    for name, text in zip(rules[1::2], rules[2::2], strict=True):
        run = set(re.findall(r"igmask --log \S+ (\w+)", text)) & set(STAGES)
        if name == "converge":
            run |= {"attribute", "mask", "evaluate"}  # as steps/converge.py does
        said = re.search(r"version=code_version\(([^)]*)\)", text)
        assert set(re.findall(r'"(\w+)"', said[1] if said else "")) == run, name
        n_versioned += bool(run)
    assert n_versioned >= 12
    assert code_version("mask", "probe") == f"mask v{STAGES['mask']} probe v{STAGES['probe']}"


def test_readings_of_ones_own_are_watched_and_looked_at_before_work_begins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ways.py").write_text("fill = control = baseline = None")
    Path("grey.png").write_bytes(b"grey")
    asked = {
        "baselines": ["black", "grey.png", "ways:baseline"],
        "fills": ["ways:fill"],
        "controls": ["ways:control"],
    }
    flow = Workflow(STUDY | {"readings": asked})
    ways = Readings(flow)
    one, other = (f"probability-predicted-{word}" for word in ("grey-png", "ways-baseline"))
    evaluated = flow.contents(ways.evaluate)(of("tv", attributed="own", score="signed", by="mass"))
    assert evaluated.startswith("ways.py: ")
    assert ways.baseline_contents(of("tv", attributed=one)).startswith("grey.png: ")
    assert ways.baseline(of("tv", attributed=one)) == ["grey.png"]
    assert ways.baseline_contents(of("tv", attributed=other)).startswith("ways.py: ")
    assert ways.baseline_contents(of("tv", attributed="own")) == ""
    looked_at = flow.preflight(of("tv"))
    assert set(looked_at.own) == {"ways:baseline", "ways:fill", "ways:control"}
    assert (looked_at.fills, looked_at.controls) == (("ways:fill",), ("ways:control",))
    Path("grey.png").unlink()
    with pytest.raises(InputError, match=r"readings.baselines\[1\]: there is no file 'grey.png'"):
        Workflow(STUDY | {"readings": asked})
    alike = STUDY | {"readings": {"baselines": ["a:b_c", "a:b.c"]}}
    with pytest.raises(InputError, match=r"'a:b_c' and 'a:b\.c' would be the same folder"):
        Readings(Workflow(alike))


def test_options_name_every_setting_in_one_quoted_string():
    swapped = []
    for n_steps, n_baselines in ((2, 3), (3, 2)):
        attribution = {"baseline": "uniform", "n_steps": n_steps, "n_baselines": n_baselines}
        flow = Workflow(STUDY | {"attribution": attribution})
        options = flow.words("attribute")(of())
        words = shlex.split(options)
        assert words[words.index("--n-steps") + 1] == str(n_steps)
        assert json.loads(words[words.index("--model") + 1])["source"] == "igmask.zoo:small_vgg"
        swapped.append(options)
    assert swapped[0] != swapped[1]


@pytest.mark.parametrize(
    ("shards", "cores", "threads"), [(1, 16, 8), (2, 16, 4), (3, 16, 2), (9, 16, 1), (1, None, 1)]
)
def test_cores_are_shared_among_the_jobs_of_preparation(tmp_path, shards, cores, threads):
    models = {"a": STUDY["models"]["tv"], "b": STUDY["models"]["tv"] | {"size": 96}}
    study, compute = STUDY | {"models": models}, {"compute": {"shards": shards}}
    study |= {"dataset": {"source": "folder", "root": str(tmp_path)}}
    assert Workflow(study | compute).prepare_threads(cores) == threads
    assert Workflow(STUDY | compute).prepare_threads(cores) == 1  # drawn, by Python alone


def test_options_leave_out_what_a_job_does_not_depend_on(flow):
    attribute = flow.words("attribute")(of())
    assert "--seed" not in attribute
    assert "--blur-sigma" not in attribute
    assert "--n-baselines" not in attribute
    other = Workflow(STUDY | {"compute": {"batch_size": 3, "threads": 2}})
    assert other.words("attribute")(of()) == attribute
    assert "--batch-size 3" in other.compute_options()
    more = Workflow(STUDY | {"dataset": {"source": "demo", "n_train": 77, "limit": 3}})
    assert more.words("index")(of()) == flow.words("index")(of())
    said = Workflow(STUDY | {"dataset": STUDY["dataset"] | {"obtain": "there", "n_expected": 9}})
    assert said.words("index")(of()) == flow.words("index")(of())
    assert more.words("train")(of()) != flow.words("train")(of())


def test_automatic_steps_bring_their_tests_along(flow):
    attribute = flow.words("attribute")(of())
    assert "--tolerance" not in attribute
    assert "--most-steps" not in attribute
    auto = Workflow(STUDY | {"attribution": {"n_steps": "auto", "most_steps": 100}})
    words = shlex.split(auto.words("attribute")(of()))
    assert words[words.index("--n-steps") + 1] == "auto"
    assert words[words.index("--most-steps") + 1] == "100"
    compiled = Workflow(STUDY | {"compute": {"engine": "compile"}})
    assert compiled.words("attribute")(of()) == attribute
    assert compiled.engine_options() == "--engine compile"


def test_a_key_that_is_there_twice_stops_snakemake(tmp_path):
    (tmp_path / "config.yaml").write_text(f"{yaml.safe_dump(STUDY)}seed: 1\nseed: 2\n")
    done = snakemake(tmp_path, "--dry-run")
    assert done.returncode
    assert "seed is there twice" in done.stdout + done.stderr
    (tmp_path / "mine.yaml").write_text(f"{yaml.safe_dump(STUDY)}figures: {{}}\nfigures: {{}}\n")
    (tmp_path / "config.yaml").unlink()
    done = snakemake(tmp_path, "--dry-run", "--configfile", "mine.yaml")
    assert "mine.yaml, line " in done.stdout + done.stderr
