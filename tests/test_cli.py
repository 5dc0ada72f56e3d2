"""The command line as people use it."""

import json
import re

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from running import ROOT, igmask

from igmask import cli
from igmask.cli import options

NETWORK = """
import torch
import yaml
from torch import nn

def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1296, 3))
"""

COMMANDS = sorted(cli.app.commands)


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "cli_net.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    for i in range(6):
        folder = tmp_path / "photo's; of $HOME" / ("a b", "ç")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"im'age {i};.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command):
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 6
    for name in cli.app.commands[command].params:
        if name.param_type_name == "option":
            assert name.help, (command, name)


def test_the_commands_are_the_steps_in_their_order():
    listed = CliRunner().invoke(cli.app, ["--help"]).output.split("Commands:")[1]
    steps = (
        "explain check schema train index preflight prepare attribute randomise mask evaluate "
        "converge probe tables readings examples curves gallery page"
    )
    by_hand = "compare verify export inspect bench"
    assert re.findall(r"^  (\S+)", listed, re.MULTILINE) == f"{steps} {by_hand}".split()
    assert "..." not in listed  # sentences are whole


def test_a_command_that_there_is_not_has_a_name_near_it():
    said = CliRunner().invoke(cli.app, ["explian", "photo.jpg"])
    assert said.exit_code == 2
    assert "There is no command 'explian'; did you mean 'explain'?" in said.output


def test_every_step_by_hand(here):
    (here / "names.txt").write_text("a b\nç\nemu\n")
    dataset = '{"source": "folder", "root": "photo\'s; of $HOME", "classes": "names.txt"}'
    model = '{"source": "cli_net:net", "size": 20}'
    study = f'{{"dataset": {dataset}, "models": {{"model": {model}}}}}'
    evaluated = ("records/original.parquet", "records/keep-50-black.parquet")
    for words in (
        ("index", "--dataset", dataset, "-o", "index.parquet"),
        ("preflight", "index.parquet", "--model", model, "-o", "found.json"),
        ("prepare", "index.parquet", "--size", 20, "-o", "images.npy"),
        ("attribute", "images.npy", "--model", model, "--n-steps", 3, "-o", "scores.npy"),
        ("mask", "scores.npy", "-p", 50, "-o", "masks"),
        ("evaluate", "images.npy", "--model", model, "--masks", "masks/50.npy", "-o", "records"),
        ("probe", "masks/50.npy", "-o", "probe.parquet"),
        ("compare", *evaluated),
        ("tables", *evaluated, "probe.parquet", "-o", "out"),
        ("readings", *evaluated, "-o", "out"),
        ("curves", "out/accuracy.csv", "-o", "out"),
        ("examples", "images.npy", "scores.npy", "masks/50.npy", *evaluated, "-o", "out"),
        ("gallery", "images.npy", "scores.npy", "masks/50.npy", "records", "-o", "gallery.json"),
        ("page", "out", "gallery.json", "--study", study, "-o", "index.html"),
        ("export", "images.npy", "--masks", "masks/50.npy", "--fill", "mean", "-o", "exported"),
    ):  # fmt: skip
        done = igmask(*words, folder=here)
        assert done.returncode == 0, done.stderr
    assert (here / "index.html").stat().st_size > 500_000
    assert "| cli_net:net" in (here / "out" / "table1.md").read_text()
    assert (here / "out" / "keep-model.png").stat().st_size > 1000
    assert (here / "exported" / "a b" / "im'age 0;.png").is_file()


def test_explain_draws_one_image(here):
    (here / "names.txt").write_text("Katze\nHund\nEmu\n")
    (here / "model.yaml").write_text("source: cli_net:net\nsize: 20\n")
    image = next((here / "photo's; of $HOME").rglob("*.png"))
    words = ("explain", image, "--model", "model.yaml", "-p", 50, "-p", 20)
    more = ("--n-steps", 3, "--classes", "names.txt", "-o", "out.png")
    done = igmask(*words, *more, folder=here)
    assert done.returncode == 0, done.stderr
    with Image.open(here / "out.png") as picture:
        assert picture.size[0] > 400


def test_explain_refuses_grey_of_more_than_8_bits(here):
    (here / "model.yaml").write_text("source: cli_net:net\nsize: 20\n")
    Image.new("I;16", (30, 30), 40_000).save(here / "x-ray.png")
    done = igmask("explain", "x-ray.png", "--model", "model.yaml", "-o", "out.png", folder=here)
    assert done.returncode == 1
    assert "x-ray.png: its mode is I;16, grey of more than 8 bits; save it" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_have_the_bounds_of_their_settings():
    for name, most in (("examples", 20), ("gallery", 1000)):
        option = "--n-images" if name == "examples" else "--n-gallery"
        done = CliRunner().invoke(cli.app, [name, option, f"{most + 1}"])
        assert f"{most + 1} is not in the range 1<=x<={most}" in done.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mask", "nothing.npy", "-p", "50", "-o", "m.npy"], "nothing.npy: not a whole .npy"),
        (["index", "--dataset", '{"source": "folder"}', "-o", "i"], "root: missing"),
        (["index", "--dataset", '{"sauce": 1}', "-o", "i"], "sauce: unknown key; did you mean"),
        (["index", "--dataset", "nosuch.yaml", "-o", "i"], "no settings file 'nosuch.yaml'"),
        (["index", "--dataset", "{a: [}", "-o", "i"], "error"),
        (["explain", "x.png", "--model", "resnet5O", "-o", "o.png"], "no classifier 'resnet5O'"),
    ],
)
def test_mistakes_are_one_message(here, words, message):
    done = igmask(*words, folder=here)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("p", "says"),
    [
        ("0", "0 is not above 0 and at most 100"),
        ("150", "150 is not above 0 and at most 100"),
        ("12.345", "12.345 has more than two decimals"),
        ("nan", "nan is not finite"),
        ("inf", "inf is not finite"),
        ("50%", "'50%' is not a number; 50 is 50 %"),
    ],
)
def test_percentages_out_of_range_are_named(p, says):
    result = CliRunner().invoke(cli.app, ["mask", "x.npy", "-p", p, "-o", "m.npy"])
    assert result.exit_code == 2
    assert f"Invalid value for '-p' / '--p': {says}" in result.output


@pytest.mark.parametrize("command", ["mask", "explain"])
def test_a_percentage_below_1_is_asked_about(command):
    words = [command, "x.png", "--model", "resnet18"][: 2 if command == "mask" else 4]
    result = CliRunner().invoke(cli.app, [*words, "-p", "0.5", "-o", "m"])
    assert "warning: 0.5 means 0.5 %; write 50 if 50 % is meant" in result.output


def test_numbers_out_of_range_are_named():
    words = ["attribute", "x.npy", "--model", '{"source": "a:b"}', "-o", "s.npy"]
    for more in (["--blur-sigma", "0"], ["--n-steps", "0"], ["--batch-size", "0"]):
        assert CliRunner().invoke(cli.app, words + more).exit_code == 2


@pytest.mark.parametrize("value", ["nan", "inf", "0"])
def test_numbers_that_are_not_finite_are_named(value):
    result = CliRunner().invoke(cli.app, ["attribute", "--blur-sigma", value])
    assert result.exit_code == 2
    assert f"'--blur-sigma': {value}" in result.output


def test_an_unknown_option_suggests(here):
    done = igmask("mask", "x.npy", "--scor", "signed", "-o", "m.npy", folder=here)
    assert done.returncode == 2
    assert "--score" in done.stderr


def test_the_log_takes_the_error(here):
    igmask("--log", "logs/x.log", "mask", "nothing.npy", "-p", "50", "-o", "m", folder=here)
    assert "nothing.npy: not a whole" in (here / "logs" / "x.log").read_text()


def test_threads_are_set():
    before = torch.get_num_threads()
    options.use_threads(None, None, 1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_the_schema_is_one_and_takes_the_shipped_studies():
    done = CliRunner().invoke(cli.app, ["schema"])
    rules = json.loads(done.output)
    jsonschema.Draft202012Validator.check_schema(rules)
    shipped = [ROOT / "config.yaml", *(ROOT / "config").glob("*.yaml")]
    assert len(shipped) > 4
    for path in shipped:
        study = yaml.safe_load(path.read_text("utf-8"))
        jsonschema.Draft202012Validator(rules).validate(study)
