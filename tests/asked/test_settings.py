"""The names that a configuration may have are those of the code, no more and no fewer, in order."""

import dataclasses
import subprocess
import sys

import pytest

from igmask import quadrature
from igmask.asked.settings import BASELINES, Dataset, schema
from igmask.engine import ig, network
from igmask.inputs import baselines, decode, sources
from igmask.steps import methods
from igmask.steps.masked import controls


def choices(*path):
    """What the schema lists for a key, or for the items of a list."""
    rules = schema()
    for key in path:
        rules = rules["properties"][key]
    one = rules.get("items", rules)
    return one.get("enum") or one["examples"]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (("attribution", "of"), ig.FUNCTIONS),
        (("attribution", "rule"), (*quadrature.RULES, quadrature.ADAPTIVE)),
        (("attribution", "precision"), network.PRECISIONS),
        (("attribution", "method"), methods.METHODS),
        (("compute", "engine"), network.ENGINES),
        (("masking", "controls"), controls.CONTROLS),
    ],
    ids=lambda value: ".".join(value) if "." not in str(value) else None,
)
def test_the_schema_lists_what_the_code_has(path, names):
    assert choices(*path) == list(names)


def test_sources_are_those_of_the_code():
    rules = schema()["properties"]["dataset"]
    assert rules["properties"]["source"]["examples"] == list(sources.SOURCES)
    assert set(Dataset.NEEDS) <= set(sources.SOURCES)


def test_the_sources_of_a_key_are_sources():
    limited = {one.name: one.metadata.get("sources", ()) for one in dataclasses.fields(Dataset)}
    assert {name for of in limited.values() for name in of} == set(sources.SOURCES)
    for source, needed in Dataset.NEEDS.items():
        assert all(source in limited.get(key, limited.get(f"{key}_")) for key in needed)
    described = schema()["properties"]["dataset"]["properties"]
    assert described["files"]["description"].startswith("parquet, webdataset: pattern")


def test_baselines_are_listed_once_and_explained():
    assert list(BASELINES) == list(baselines.BASELINES)
    text = schema()["properties"]["attribution"]["properties"]["baseline"]["description"]
    assert all(name in text for name in BASELINES)


def test_ways_to_resize_are_those_of_pillow():
    models = schema()["properties"]["models"]["additionalProperties"]["properties"]
    assert [way for way in models["interpolation"]["enum"] if way] == list(decode.INTERPOLATIONS)


def test_every_key_says_what_it_means():
    def keys(rules, where=""):
        for name, one in rules.get("properties", {}).items():
            yield f"{where}.{name}", one
            yield from keys(one.get("additionalProperties") or one, f"{where}.{name}")

    found = dict(keys(schema()))
    assert len(found) > 50
    assert [name for name, one in found.items() if not one.get("description")] == []


def test_settings_are_checked_where_python_leaves_docstrings_out():
    words = [sys.executable, "-OO", "-c", "from igmask.cli import main; main()", "schema"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "blur_sigma" in done.stdout
