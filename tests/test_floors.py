"""Imports flow one way, and light commands stay light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from running import ROOT

import igmask

# Imports run down: a room's modules import from their own room and from lower floors only.
FLOORS = [
    {"errors", "streams", "tracing", "zoo"},
    {"plain", "progress", "quadrature", "statistics"},
    {"kernels", "devices", "asked"},
    {"arrays"},
    {"inputs"},
    {"engine", "plan"},
    {"steps", "readings", "made"},
    {"report"},
    {"tools", "bench"},
    {"cli"},
]
FLOOR_OF = {name: i for i, floor in enumerate(FLOORS) for name in floor}
FILES = [path for room in ("igmask", "kernels") for path in sorted((ROOT / room).rglob("*.py"))]
MODULES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
    for path in FILES
    if path.stem != "__init__" and path.parent != ROOT / "kernels"
}


def place(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """The igmask modules a file imports, wherever in the file, as a name below igmask."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        found = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "igmask":
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.startswith("igmask.")]
        yield from (name.removeprefix("igmask.") for name in found)


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_from_lower_floors(name):
    own = name.split(".")[1]
    rooms = {there.split(".")[0] for there in imports(MODULES[name])}
    above = sorted(room for room in rooms - {own} if FLOOR_OF[room] >= FLOOR_OF[own])
    assert not above, f"{name} imports from {above}"


def test_no_import_goes_round_in_a_circle():
    needs = {
        name: {
            module
            for there in imports(path)
            for module in (f"igmask.{there}", f"igmask.{there.rpartition('.')[0]}")
            if module in MODULES
        }
        for name, path in MODULES.items()
    }
    assert sum(map(len, needs.values())) > 100
    TopologicalSorter(needs).prepare()  # raises CycleError


@pytest.mark.parametrize("room", sorted({path.parent for path in FILES}), ids=place)
def test_rooms_are_small(room):
    assert len(list(room.glob("*.py"))) <= 13


@pytest.mark.parametrize("path", FILES, ids=place)
def test_files_and_functions_are_short(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 450
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef))
    assert not {f.name: n for f in functions if (n := f.end_lineno - f.lineno + 1) > 60}


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda p: p.stem)
def test_kernels_know_tensors_only(path):
    assert {name.split(".")[0] for name in imports(path)} <= {"kernels", "plain"}
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    plain = {"collections", "dataclasses", "functools", "itertools", "os", "types", "typing"}
    assert names <= {"torch", "triton", "igmask"} | plain


@pytest.mark.parametrize(
    ("light", "heavy"),
    [
        (
            "igmask igmask.cli igmask.plan igmask.devices"
            " igmask.steps.prepare igmask.steps.index igmask.steps.mask"
            " igmask.report.tables igmask.report.examples igmask.report.curves igmask.tools.verify",
            "torch scipy",
        ),
        ("igmask.cli", "pandas jsonschema yaml"),
        ("igmask.plan", "pandas PIL"),
        ("igmask.steps.train igmask.steps.preflight", "igmask.kernels"),
        ("igmask.steps.attribute igmask.steps.evaluate igmask.tools.export", "torchvision"),
    ],
)
def test_light_modules_import_nothing_heavy(light, heavy):
    """One after another in one process: what none has imported by then, each does without."""
    code = f"""
import importlib, sys
for name in {light.split()}:
    importlib.import_module(name)
    assert not (found := {set(heavy.split())} & set(sys.modules)), f"{{name}} imports {{found}}"
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_exports_what_it_lists():
    assert sorted(igmask.__all__) == sorted(dir(igmask))
    for name in igmask.__all__:
        assert callable(getattr(igmask, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = igmask.nothing
