"""Converged masks of some images, masks of other networks, and readings, on a small study."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from steps import run_attribute, run_evaluate, run_index, run_mask, run_prepare

from igmask import arrays, plain
from igmask.asked import config, fields
from igmask.asked.recipes import Converge, Probe
from igmask.asked.settings import Attribution, Geometry
from igmask.errors import InputError
from igmask.inputs import models
from igmask.plan import Workflow
from igmask.readings import Readings
from igmask.report.claims.readings import SENTENCES, explained, readings
from igmask.report.claims.readings import collect as read_all
from igmask.report.tables import tables
from igmask.steps.converge import converge, iou
from igmask.steps.probe import probe

SIZE, N = 12, 24
NETWORK = """
import torch
from torch import nn

def network(seed=0):
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(32, 2))
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Two networks in a module, images, their scores and masks at p = 90 and 50."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"converge_{tmp_path.name}"
    Path(f"{name}.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    for i in range(N):
        path = Path("images", "ab"[i % 2], f"{i:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(path)
    run_index({"source": "folder", "root": "images"}, Path("index.parquet"))
    run_prepare(Path("index.parquet"), Path("x.npy"), geometry=Geometry(SIZE, None, "bilinear"))
    found = {}
    for seed, called in enumerate(("one", "two")):
        settings = {"source": f"{name}:network", "size": SIZE, "arguments": {"seed": seed}}
        found[called] = config.model(settings)
        asked = fields.plain(Attribution(n_steps=4))
        run_attribute(Path("x.npy"), Path(f"{called}.npy"), model=found[called], attribution=asked)
        run_mask([Path(f"{called}.npy")], Path(f"masks-{called}"), p=(90, 50))
    return found


MASKS = [Path("masks-one/90.npy"), Path("masks-one/50.npy")]


def converged(model, n_images):
    recipe = Converge(model, Attribution(n_steps=4), name="one", n_images=n_images)
    converge([Path("x.npy")], Path("out"), recipe, masks=MASKS)


def test_converged_masks_are_of_so_many_images_and_compared(study):
    converged(study["one"], 10)
    agreement, made_by = arrays.read_records(Path("out/agreement.parquet"))
    assert made_by["step"] == "converge"
    assert len(agreement) == 20
    records, said = arrays.read_records(Path("out/records/keep-50-black-of-converged.parquet"))
    assert len(records) == 10
    assert said["mask"] == "of-converged"
    names = arrays.read_records(Path("x.parquet"))[0]["name"]
    rows = names[names.isin(records["name"])].index.to_numpy()
    own = plain.unpack(arrays.read_array(MASKS[1])[rows], (4, 4))
    better = plain.unpack(arrays.read_array(Path("out/masks/50.npy")), (4, 4))
    expected = [(a & b).sum() / (a | b).sum() for a, b in zip(own, better, strict=True)]
    found = agreement[agreement["p"] == 50].set_index("name")["iou"][records["name"]]
    np.testing.assert_allclose(found, expected)
    error = arrays.read_records(Path("out/scores.parquet"))[0]["relative_completeness"]
    assert error.median() < 0.01  # so they are converged


def test_a_sample_is_drawn_and_no_larger_than_the_dataset(study):
    converged(study["one"], 1000)
    assert len(arrays.read_records(Path("out/images.parquet"))[0]) == N
    converged(study["one"], 6)
    some = arrays.read_records(Path("out/images.parquet"))[0]["position"]
    assert len(set(np.diff(some))) > 1  # no regular step, which might meet one class alone


def test_iou():
    first = np.array([[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]], bool)
    second = np.array([[[1, 0], [1, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 1]]], bool)
    assert iou(first, second).tolist() == [1 / 3, 1, 0]


def evaluated(study, name, *, of=None, **more):
    masks = tuple(Path(f"masks-{of or name}", f"{p}.npy") for p in (90, 50))
    how = {"masks": masks, "scores": (Path(f"{name}.npy"),), "points": 0, "controls": ()} | more
    folder = Path(f"records-{name}", *(["of", of] if of else []))
    run_evaluate([Path("x.npy")], folder, model=study[name], name=name, masks_of=of, **how)
    return folder


def test_a_network_is_shown_anothers_masks_and_answers_for_itself(study):
    folder = evaluated(study, "two", of="one")
    names = {f"{mode}-{p}-black-of-one" for mode in ("keep", "drop") for p in (90, 50)}
    assert {path.stem for path in folder.glob("*.parquet")} == names
    records, made_by = arrays.read_records(folder / "drop-50-black-of-one.parquet")
    assert made_by["model"]["arguments"] == {"seed": 1}
    network = models.load(study["two"])
    images = torch.tensor(arrays.read_array(Path("x.npy"))).movedim(3, 1) / 255
    mask = plain.unpack(arrays.read_array(MASKS[1]), (4, 4))
    kept = torch.from_numpy(~mask).repeat_interleave(3, 1).repeat_interleave(3, 2)
    said = network(images * kept[:, None]).softmax(dim=1)
    assert records["predicted"].tolist() == said.argmax(dim=1).tolist()
    own = network(images).argmax(dim=1)
    expected = said.gather(1, own[:, None])[:, 0].detach()
    np.testing.assert_allclose(records["probability_original"], expected, rtol=1e-5)


def test_anothers_masks_need_the_networks_own_answers(study):
    with pytest.raises(InputError, match="masks of one need the network's own scores"):
        evaluated(study, "two", of="one", scores=())


def test_all_tables_have_their_place_for_other_masks(study):
    folders = [evaluated(study, name) for name in study]
    folders += [evaluated(study, "one", of="two"), evaluated(study, "two", of="one")]
    converged(study["one"], 8)
    probe(MASKS, Path("probe.parquet"), Probe("one"))
    made = [Path("out/agreement.parquet"), Path("out/records"), Path("probe.parquet")]
    tables([*folders, *made], output=Path("tables"))
    accuracy = pd.read_csv("tables/accuracy.csv")
    own = accuracy[accuracy["mask"] == "selection"].set_index(["model", "condition"])["top1"]
    other = accuracy[accuracy["mask"] == "of-one"].set_index("condition")["top1"]
    table = pd.read_csv("tables/table8.csv", index_col=0)
    assert table.loc["two", "masks of one"] == (
        f"{other['keep-50-black-of-one']:.1f} / {other['drop-50-black-of-one']:.1f}"
    )
    assert table.loc["two", "masks of two"] == (
        f"{own['two', 'keep-50-black']:.1f} / {own['two', 'drop-50-black']:.1f}"
    )
    assert table.loc["one", "masks of one"].split(" / ")[0] == f"{own['one', 'keep-50-black']:.1f}"
    nine = pd.read_csv("tables/table9.csv", index_col=[0, 1], dtype=str)
    assert nine.columns.tolist() == ["keep 90 %", "keep 50 %", "drop 90 %", "drop 50 %"]
    iou = arrays.read_records(Path("out/agreement.parquet"))[0].groupby("p")["iou"].mean()
    assert nine.loc[("one", "IoU"), "keep 50 %"] == f"{iou[50]:.3f}"
    assert nine.loc[("one", "n"), "keep 50 %"] == "8"
    seven = pd.read_csv("tables/table7.csv", index_col=[0, 1], dtype=str)
    read = arrays.read_records(Path("probe.parquet"))[0].query("p == 50")
    share = 100 * (read["from_mask"] == read["label"]).mean()
    assert seven.loc[("one", "class from the mask"), "keep 50 %"] == f"{share:.1f}"
    assert "of-one" not in Path("tables/table1.md").read_text()
    assert "m = 4;" in Path("tables/table1.md").read_text()
    six = pd.read_csv("tables/table6.csv", index_col=[0, 1], dtype=str)
    assert ("two", "keep 50 − masks of one") in six.index
    assert ("one", "keep 50 − converged masks") in six.index


def test_too_few_images_say_nothing_of_masks(study):
    records, made_by = arrays.read_records(Path("masks-one/50.parquet"))
    with arrays.writing(Path("few.npy"), np.uint8, (2,)) as writer:
        writer.append(arrays.read_array(MASKS[1])[:6])
    few = records[:6].assign(crc32=writer.checksums)
    arrays.write_records(Path("few.parquet"), few, made_by)
    probe([Path("few.npy")], Path("probe.parquet"), Probe("one"))
    assert (arrays.read_records(Path("probe.parquet"))[0]["from_mask"] == -1).all()
    tables([evaluated(study, "one"), Path("probe.parquet")], output=Path("tables"))
    assert pd.read_csv("tables/accuracy.csv")["from_mask"].isna().all()


STUDY = {
    "dataset": {"source": "demo"},
    "models": {"a": {"source": "igmask.zoo:small_vgg", "size": 64, "train": {}}},
}


def test_readings_share_attributions():
    asked = {"baselines": ["black", "my:own"], "controls": ["none", "random"]}
    ways = Readings(Workflow(STUDY | {"readings": asked}))
    assert list(ways.attributions) == [
        "own", "probability-predicted-my-own", "logit-predicted-black", "logit-predicted-my-own",
    ]  # fmt: skip
    assert len(ways.readings) == 4 * 3 * 2
    one = SimpleNamespace(model="a", attributed="own", score="signed", by="mass")
    assert ways.scores(one) == ["results/demo/models/a/scores/1-of-1.npy"]
    assert ways.evaluate(one).controls == ("random",)
    assert ways.mask(one).score == "signed"
    assert len(ways.records(None)) == 24 * len(ways.record_names())


def test_readings_are_counted_and_explained(study):
    records = []
    for score in ("positive", "signed"):
        run_mask([Path("one.npy")], Path("masks-one"), p=(90, 50), score=score)
        folder = evaluated(study, "one", controls=("random",), score=score)
        folder = folder.rename(f"records-{score}")
        records.append(folder)
    readings(records, output=Path("tables"))
    found = pd.read_csv("tables/readings.csv", keep_default_na=False)
    found[[*SENTENCES]] = found[[*SENTENCES]].apply(pd.to_numeric)
    assert len(found) == 4
    assert found["third"].isna().tolist() == (found["control"] != "none").tolist()
    row = found[(found["score"] == "signed") & (found["control"] == "none")].iloc[0]
    top1 = {
        name: 100
        * arrays.read_records(Path("records-signed", f"{name}.parquet"))[0]["correct"].mean()
        for name in ("original", "keep-90-black", "keep-50-black", "drop-50-black")
    }
    assert row["reversed"] == pytest.approx(top1["drop-50-black"] - top1["keep-50-black"], abs=1e-3)
    assert row["falls"] == pytest.approx(top1["keep-90-black"] - top1["keep-50-black"], abs=1e-3)
    assert row["third"] == pytest.approx(top1["original"] * 2 / 3 - top1["keep-90-black"], abs=1e-3)
    beside = found[(found["score"] == "signed") & (found["control"] == "random")].iloc[0]
    random = arrays.read_records(Path("records-signed/keep-90-black-random.parquet"))[0]
    expected = row["keep 90"] - 100 * random["correct"].mean()
    assert beside["keep 90"] == pytest.approx(expected, abs=1e-3)
    holds = pd.read_csv("tables/sentences.csv").set_index("sentence")
    for name in SENTENCES:
        assert holds.loc[name, "holds"] == SENTENCES[name].holds(found[name]).sum()
        assert holds.loc[name, "n"] == found[name].notna().sum()
    text = Path("tables/sentences.md").read_text()
    assert "of 4" in text
    assert read_all(sorted(records[0].glob("*.parquet"))).rows["fill"].unique() == ["black"]


def test_readings_are_of_the_same_images_and_differ_in_choices_alone(study):
    run_mask([Path("one.npy")], Path("masks-one"), p=(90, 50))
    folder = evaluated(study, "one", controls=("random",))
    files = sorted(folder.glob("*.parquet"))
    bare = {row["control"]: row for row in read_all(files).rows.to_dict("records")}
    control = folder / "keep-90-black-random.parquet"
    records, settings = arrays.read_records(control)
    left = records[records["name"] != records["name"].iloc[0]]  # an image without a ranking
    arrays.write_records(control, left, settings)
    [found] = read_all(files).rows.query("control == 'random'").to_dict("records")
    own = arrays.read_records(folder / "keep-90-black.parquet")[0].set_index("name")["correct"]
    both = own[left["name"].unique()].mean() - left["correct"].mean()
    assert found["keep 90"] == pytest.approx(100 * both)
    assert found["keep 50"] == bare["random"]["keep 50"]
    records, settings = arrays.read_records(folder / "drop-50-black.parquet")
    for changed, says in (
        ({"side": 2}, "made with side 2, and others of .* with 3"),
        ({"attribution": settings["attribution"] | {"n_steps": 7}}, "attribution.n_steps 7"),
    ):
        arrays.write_records(folder / "drop-50-black.parquet", records, settings | changed)
        with pytest.raises(InputError, match=says):
            read_all(files)
    arrays.write_records(folder / "drop-50-black.parquet", records[1:], settings)
    with pytest.raises(InputError, match="records of drop 50 are not of the same images"):
        read_all(files)


def test_exactly_a_third_is_a_third():
    margin = SENTENCES["third"].margin({("keep", 90.0): 46.8}, 70.2)
    assert SENTENCES["third"].holds(pd.Series([margin, -0.1])).tolist() == [True, False]
    assert SENTENCES["falls"].holds(pd.Series([0.0, 1e-3])).tolist() == [False, True]


def test_a_choice_explains_what_it_alone_decides():
    choices = pd.DataFrame({"a": list("xxyy"), "b": list("uvuv"), "c": list("oooo")})
    of_a = explained(choices, pd.Series([1.0, 1, 3, 3]))
    assert of_a == {"a": pytest.approx(1), "b": pytest.approx(0)}
    both = explained(choices, pd.Series([0.0, 1, 2, 3]))
    assert both == {"a": pytest.approx(0.8), "b": pytest.approx(0.2)}
    together = explained(choices, pd.Series([0.0, 1, 1, 0]))
    assert together == {"a": pytest.approx(0), "b": pytest.approx(0)}
    assert np.isnan(explained(choices, pd.Series([1.0] * 4))["a"])
