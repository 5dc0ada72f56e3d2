"""What starting the demo's jobs costs: CPU seconds until each begins its work, against all of them.

    python benchmarks/start_up.py benchmarks/results/start-up-cpu.md

The demo runs once through Snakemake, on all cores. Then some of its jobs run again, and end where
their work would begin: at their progress bar, or once their step is imported where they have none.
"""

import os
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from igmask.arrays import KEPT, write_text
from igmask.bench.pages import describe, figures_of, of, page, table

SNAKEFILE = Path(__file__).resolve().parents[1] / "Snakefile"
WITHOUT_BAR = {
    "index": "igmask.steps.index",
    "preflight": "igmask.steps.preflight",
    "tables": "igmask.report.tables",
    "examples": "igmask.report.examples",
    "curves": "igmask.report.curves",
    "gallery": "igmask.report.page.gallery",
    "page": "igmask.report.page.page",
}
N_TIMES = 4  # of each rule

# Runs the command, but for the work.
UNTIL_THE_BAR = """
import os
import igmask.progress
def begin(*_, **__):
    os._exit(0)
    yield
igmask.progress.progress = begin
from igmask.cli import main
main()
"""


def cpu_s(command: list[str | Path]) -> tuple[float, str]:
    """Return (CPU seconds of a command and what it started, its output)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stdout[-2000:])
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def start_s(words: list[str]) -> float:
    """Return the CPU seconds until `igmask` with these arguments begins its work."""
    step = words[2]
    code = f"import os, igmask.cli, {WITHOUT_BAR.get(step)}; os._exit(0)"
    return cpu_s([sys.executable, "-c", code if step in WITHOUT_BAR else UNTIL_THE_BAR, *words])[0]


def main(output: Path) -> None:
    """Measure, and write a page."""
    place = output.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        print("the demo, a minute or two …")
        command = [sys.executable, "-m", "snakemake", "--snakefile", SNAKEFILE, "--cores", "all"]
        whole_s, said = cpu_s(command)
        jobs = defaultdict(list)
        for line in re.findall(r"Shell command: igmask (.*)", said):
            words = shlex.split(line)
            jobs[words[2]].append(words)
        for kept in Path(folder).rglob(KEPT):
            shutil.rmtree(kept)  # else there would be no work to begin
        rows = []
        for step, found in tqdm(jobs.items(), unit="steps"):
            tried = found[:: max(1, len(found) // N_TIMES)][:N_TIMES]
            start = statistics.mean(start_s(words) for words in tried)
            rows.append({"step": step, "jobs": len(found), "s": start, "all": len(found) * start})
        os.chdir("/")
    n_jobs, starts_s = sum(row["jobs"] for row in rows), sum(row["all"] for row in rows)
    numbers = {key: figures_of(key) for key in ("jobs", "s", "all")}
    # Not before: it imports PyTorch.
    machine = describe("cpu", 1, ("igmask", "torch", "pandas", "snakemake"))
    text = [
        f"The demo's {n_jobs} jobs and Snakemake itself take {whole_s:.0f} s of CPU, "
        f"{starts_s:.0f} s of which, {starts_s / whole_s:.0%},",
        "pass before a job begins its work: Python starts, libraries are imported, a network is",
        "built. CPU seconds of a job, and of all jobs of a step:",
    ]
    title, command = "What starting jobs costs", "benchmarks/start_up.py"
    results = table(rows, {"step": of("step"), **numbers})
    write_text(place, page(title, machine, f"python {command} {output}", text, results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
