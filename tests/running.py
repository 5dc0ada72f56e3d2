"""Programs as users run them, in folders of their own.

Importing Snakemake or PyTorch takes longer than most of what is asked of them: a process that has
imported them, and nothing of igmask, forks for each run, and for each job of a workflow.
"""

import atexit
import os
import shlex
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import forking
import yaml

ROOT = Path(__file__).resolve().parents[1]

SNAKEMAKE = """
import warnings, snakemake.cli
warnings.simplefilter("ignore")
snakemake.cli.main()
"""

# A script as pip writes it finds no modules in the working directory.
IGMASK = """
import sys
sys.path.remove("")
from igmask.cli import main
main()
"""


@cache
def _server(imports):
    """Return the socket of a server that has made these imports, started when first asked for."""
    folder = tempfile.TemporaryDirectory()
    path = os.path.join(folder.name, "socket")
    server = subprocess.Popen(
        [sys.executable, "-c", forking.SERVER.format(imports=imports), path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as jobs of one thread have it
    )
    assert server.stdout.readline(), "the server has not started"
    atexit.register(folder.cleanup)
    atexit.register(server.communicate)
    return path


def python(code, *words, folder, imports, env=None):
    """Return what subprocess.run does of `python -c`, where these imports have been made before."""
    with (
        open(os.devnull) as nothing,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        streams = [stream.fileno() for stream in (nothing, out, err)]
        words = [*map(str, words)]
        environment = dict(env or os.environ)
        ended = forking.run(_server(imports), code, words, str(folder), environment, streams)
        for stream in (out, err):
            stream.seek(0)
        return subprocess.CompletedProcess(words, ended, out.read(), err.read())


# What a run of either imports, some of it late.
FOR_IGMASK = (
    "jsonschema, matplotlib.figure, matplotlib.backends.backend_pdf, pandas, pyarrow.parquet, "
    "scipy.ndimage, scipy.stats, torch, torchvision"
)
FOR_SNAKEMAKE = (
    "jsonschema, pandas, smart_open, snakemake.cli, snakemake.report, "
    "snakemake_executor_plugin_slurm"
)


def igmask(*words, folder):
    """Run the command line in a folder."""
    return python(IGMASK, *words, folder=folder, imports=FOR_IGMASK)


def run_snakemake(folder, *words, forked=True):
    """Run Snakemake in a folder with these words alone."""
    env = environment(forked=forked)
    return python(SNAKEMAKE, *words, folder=folder, imports=FOR_SNAKEMAKE, env=env)


def environment(*, forked=True):
    """Of the moment: a test's fixture may have changed it.

    forked: where the shell of a job would start igmask, it has a function of this name
    """
    found = os.environ | {"PYTHONWARNINGS": "ignore"}
    return found | ({"BASH_ENV": _function()} if forked else {})


@cache
def _function():
    """Return a file that defines igmask for the shells that read it first."""
    server = _server(FOR_IGMASK)
    client = shlex.join([sys.executable, "-IS", forking.__file__, server, IGMASK])
    path = Path(server).with_name("igmask.sh")
    path.write_text(f'igmask() {{ {client} "$@"; }}\n')
    return str(path)


def command(folder, *arguments, snakefile=ROOT / "Snakefile"):
    """The words to run it with, those of Python first."""
    found = [sys.executable, "-m", "snakemake", "--snakefile", snakefile]
    return [*found, "--directory", folder, "--cores", "2", "--nocolor", *arguments]


def snakemake(folder, *arguments, study=None, snakefile=ROOT / "Snakefile", forked=True):
    """Run Snakemake in a folder, with this configuration written there first."""
    if study is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(study))
    words = command(folder, *arguments, snakefile=snakefile)[3:]
    return run_snakemake(folder, *words, forked=forked)
