"""Snakemake as users run it, in a folder of its own."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def environment():
    """Of the moment: a test's fixture may have changed it."""
    return os.environ | {"PYTHONWARNINGS": "ignore"}


def command(folder, *arguments, snakefile=ROOT / "Snakefile"):
    found = [sys.executable, "-m", "snakemake", "--snakefile", snakefile]
    return [*found, "--directory", folder, "--cores", "2", "--nocolor", *arguments]


def snakemake(folder, *arguments, study=None, snakefile=ROOT / "Snakefile"):
    """Run Snakemake in a folder, with this configuration written there first."""
    if study is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(study))
    return subprocess.run(
        command(folder, *arguments, snakefile=snakefile),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
        cwd=folder,
    )
