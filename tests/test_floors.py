"""Imports flow one way, and light commands stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import igmask

ROOT = Path(__file__).resolve().parents[1]

# Each module imports from modules on lower floors only.
FLOORS = [
    {"kernels", "errors", "quadrature", "chance", "tracing"},
    {"config", "progress", "demo", "zoo", "definition", "stem", "machine", "bench_cases"},
    {"contract"},
    {"network", "devices", "files"},
    {"classes", "arrays", "decode", "ig", "published"},
    {"captum", "masking", "data", "models", "baselines", "masks", "drawing"},
    {
        *(
            "train",
            "prepare",
            "attribute",
            "tables",
            "examples",
            "curves",
            "loader",
            "inspect",
            "sample",
        ),
        *("bench", "bench_kernels", "pages"),
    },
    {"preflight", "evaluate", "trial", "explain", "bench_page", "bench_kernels_page"},
    {"workflow", "export"},
    {"check", "verify"},
    {"cli"},
]
FLOOR_OF = {name: i for i, floor in enumerate(FLOORS) for name in floor}


def imports(path):
    """The igmask modules a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "igmask":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("igmask."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("igmask."))


@pytest.mark.parametrize("path", sorted((ROOT / "igmask").glob("*.py")), ids=lambda p: p.stem)
def test_modules_import_from_lower_floors(path):
    if path.stem == "__init__":
        return
    above = [name for name in imports(path) if FLOOR_OF[name] >= FLOOR_OF[path.stem]]
    assert not above, f"{path.stem} imports {above}"


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda p: p.stem)
def test_kernels_know_tensors_only(path):
    assert set(imports(path)) <= {"kernels"}
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
    plain = {"collections", "dataclasses", "functools", "os", "types", "typing"}
    assert names <= {"torch", "triton", "igmask"} | plain


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("igmask", "torch"),
        ("igmask.cli", "torch"),
        ("igmask.workflow", "torch"),
        ("igmask.devices", "torch"),
        ("igmask.prepare", "torch"),
        ("igmask.tables", "torch"),
        ("igmask.cli", "pandas"),
        ("igmask.cli", "jsonschema"),
        ("igmask.cli", "yaml"),
        ("igmask.train", "igmask.kernels"),
        ("igmask.preflight", "igmask.kernels"),
        ("igmask.attribute", "torchvision"),
        ("igmask.evaluate", "torchvision"),
        ("igmask.export", "torchvision"),
    ],
)
def test_light_modules_import_nothing_heavy(module, heavy):
    code = f"import sys, {module}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_exports_what_it_lists():
    assert sorted(igmask.__all__) == sorted(dir(igmask))
    for name in igmask.__all__:
        assert callable(getattr(igmask, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = igmask.nothing
