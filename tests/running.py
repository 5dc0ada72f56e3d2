"""Programs as users run them, in folders of their own.

Importing Snakemake or PyTorch takes longer than most of what is asked of them: a process that has
imported them, and nothing of igmask, forks for each run.
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

# For each line of its input, a process as `python -c` makes one; says how it has ended.
SERVER = """
import json, os, sys
import {imports}

for line in sys.stdin:
    code, words, folder, environment, *streams = json.loads(line)
    if not (child := os.fork()):
        for number, path in enumerate(streams):
            os.dup2(os.open(path, os.O_RDWR), number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[1:] = words
        exec(code, {{"__name__": "__main__"}})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

SNAKEMAKE = """
import warnings, snakemake.cli
warnings.simplefilter("ignore")
snakemake.cli.main()
"""


@cache
def _server(imports):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen([sys.executable, "-c", SERVER.format(imports=imports)], **pipes)
    atexit.register(server.communicate)
    return server


def python(code, *words, folder, imports, env=None):
    """Return what subprocess.run does of `python -c`, where these imports have been made before."""
    server = _server(imports)
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        asked = code, [*map(str, words)], str(folder), env or dict(os.environ)
        streams = os.devnull, out.name, err.name
        print(json.dumps([*asked, *streams]), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read(), err.read())


def run_snakemake(folder, *words):
    """Run Snakemake in a folder with these words alone."""
    imports = "jsonschema, smart_open, snakemake.cli, snakemake.report"  # some of them late
    return python(SNAKEMAKE, *words, folder=folder, imports=imports, env=environment())


def environment():
    """Of the moment: a test's fixture may have changed it."""
    return os.environ | {"PYTHONWARNINGS": "ignore"}


def command(folder, *arguments, snakefile=ROOT / "Snakefile"):
    """The words to run it with, those of Python first."""
    found = [sys.executable, "-m", "snakemake", "--snakefile", snakefile]
    return [*found, "--directory", folder, "--cores", "2", "--nocolor", *arguments]


def snakemake(folder, *arguments, study=None, snakefile=ROOT / "Snakefile"):
    """Run Snakemake in a folder, with this configuration written there first."""
    if study is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(study))
    return run_snakemake(folder, *command(folder, *arguments, snakefile=snakefile)[3:])
