"""Snakemake as users run it, in a folder of its own.

Importing it takes longer than a dry run does, and the tests have a hundred: `snakemake` lets a
process that has imported it, and nothing of igmask, fork for each run.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]

# Of each line of its input it makes a process as `python -m snakemake` is, and says how that ended.
SERVER = """
import json, os, sys
import jsonschema, smart_open, snakemake.cli, snakemake.report  # all of it that is imported late

for line in sys.stdin:
    folder, arguments, environment, *streams = json.loads(line)
    if not (child := os.fork()):
        for number, path in enumerate(streams):
            os.dup2(os.open(path, os.O_RDWR), number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        snakemake.cli.main(arguments)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def environment():
    """Of the moment: a test's fixture may have changed it."""
    return os.environ | {"PYTHONWARNINGS": "ignore"}


def command(folder, *arguments, snakefile=ROOT / "Snakefile"):
    found = [sys.executable, "-m", "snakemake", "--snakefile", snakefile]
    return [*found, "--directory", folder, "--cores", "2", "--nocolor", *arguments]


@cache
def _server():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment(), **pipes)
    atexit.register(server.communicate)
    return server


def run(folder, arguments):
    """Run Snakemake in a folder with these words, as subprocess.run would."""
    words = [str(word) for word in arguments]
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        streams = os.devnull, out.name, err.name
        asked = [str(folder), words, dict(environment()), *streams]
        print(json.dumps(asked), file=_server().stdin, flush=True)
        code = int(_server().stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read(), err.read())


def snakemake(folder, *arguments, study=None, snakefile=ROOT / "Snakefile"):
    """Run Snakemake in a folder, with this configuration written there first."""
    if study is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(study))
    return run(folder, command(folder, *arguments, snakefile=snakefile)[3:])
