# train → index → preflight, prepare → attribute → mask → evaluate → tables, figures, page
#
#   snakemake --cores all                                       the demo (config.yaml)
#   snakemake --cores all --configfile config/cifar10.yaml
#   snakemake --cores 1 benchmarks                              igmask against Captum and PyTorch
#
# Everything is written below results/ of the working directory.

import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from igmask.asked.config import refuse_doubled_keys, warnings
from igmask.errors import InputError
from igmask.made import made
from igmask.plan import Workflow, code_version
from igmask.readings import Readings
from igmask.asked.recipes import records_of

# The jobs find the igmask that this Snakemake runs with, its environment activated or not.
shell.prefix(f"export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH; ")


# Of the working directory; where it has none, the default beside this file. A --configfile takes
# its place and is not merged with it: models of the one have no business in the other.
if not workflow.overwrite_configfiles:

    configfile: "config.yaml" if os.path.exists("config.yaml") else f"{workflow.basedir}/config.yaml"


try:
    for file in workflow.overwrite_configfiles or workflow.configfiles:
        refuse_doubled_keys(Path(file))  # of which Snakemake lets the last win
    flow = Workflow(config)
    ways = Readings(flow)
except InputError as error:
    raise WorkflowError(str(error)) from None

# Snakemake knows what made a file by its own notes. Where it has none, results may have been copied
# here, and it would take them for its own whatever made them.
if not os.path.isdir(".snakemake/metadata") or not os.listdir(".snakemake/metadata"):
    from igmask.tools.verify import foreign

    if strangers := foreign(flow):
        listed = "\n".join(f"  {line}" for line in strangers[:5])
        raise WorkflowError(
            f"{len(strangers)} results were made with other settings, the first\n{listed}\n"
            "Move them away, or let `igmask verify --remove`, with the same --configfile, remove "
            "what is not of this configuration"
        )


# Here, since every job reads this file, too.
onstart:
    for warning in warnings(flow.study):
        logger.warning(warning)


onerror:
    logger.error(
        "What is finished is kept: the same command goes on with what is missing."
    )


# Not in params: a change of device, batch size, threads or engine re-runs nothing.
COMPUTE = flow.compute_options()
ENGINE = flow.engine_options()

# Asked for by attribute and evaluate, which take one; a cluster gives it, `--resources gpu=2` or the
# default profile count it, and nothing else heeds it. Resources re-run nothing.
GPU = int(flow.study.compute.device != "cpu")


def beside(*arrays):
    """The records beside arrays: where nodes share no files, a job has what its rule declares."""
    return lambda wildcards: [
        str(records_of(Path(path))) for of in arrays for path in of(wildcards)
    ]


def folder(wildcards, output):
    """Where a job's files go: under a name of Snakemake's own where nodes share no files."""
    return os.path.dirname(output[0])


def shown(paths, kind):
    """Outputs that `snakemake --report` shows in a category, each by its name and its model."""
    made = partial(report, category=kind.title(), caption=f"docs/captions/{kind}.rst")
    of_model = {"model": "{model}"}
    return [
        made(
            path,
            labels={kind.removesuffix("s"): Path(path).stem.partition("-{")[0]}
            | (of_model if "{model}" in path else {}),
        )
        for path in paths
    ]


def growing(figure):
    """A resource that grows with each attempt: a scheduler may have ended the last for want of it."""
    return lambda wildcards, attempt: figure * attempt


# MB of memory and minutes, which a scheduler asks for. Here and not in a profile, whose figures
# Snakemake drops, all of them, when the command line sets one (snakemake/snakemake#3429). NETWORK is
# for a GPU, 1,000 large images a shard and 50,000 to evaluate; on CPUs it takes hours.
JOB = {"mem_mb": growing(1500), "runtime": growing(30)}
NETWORK = {"mem_mb": growing(4000), "runtime": growing(60)}


wildcard_constraints:
    data=r"[^/]+",
    model="|".join(re.escape(name) for name in flow.models),
    other="|".join(re.escape(name) for name in flow.models),
    attributed="|".join(map(re.escape, ways.attributions)),
    score=r"[a-z-]+",
    by=r"[a-z]+",
    shard=r"\d+-of-\d+",


localrules:
    all,


# Every file by its name, were it one that others are made of: those of a job that failed after its
# settings had changed are gone, and what was made of the former ones would pass for up to date. So
# would the tables of a rule that has new outputs, of which Snakemake has no notes.
rule all:
    input:
        [path for one in made(flow) for path in one.outputs],


# Where several jobs could begin, those come first that others wait for, and long ones before short
# ones, so that no core is idle at the end while one network is still at it.
rule train:
    output:
        "results/{data}/weights/{model}.safetensors",
    log:
        "results/{data}/logs/train/{model}.log",
    priority: 150
    resources:
        **JOB,
    params:
        options=flow.words("train"),
        contents=flow.model_contents,
        version=code_version("train"),
    shell:
        "igmask --log {log:q} train {params.options} --output {output:q}"


rule index:
    output:
        "results/{data}/index.parquet",
    log:
        "results/{data}/logs/index.log",
    resources:
        **JOB,
    params:
        options=flow.words("index"),
        contents=flow.dataset_contents,
        version=code_version("index"),
    shell:
        "igmask --log {log:q} index {params.options} --output {output:q}"


# Early, since what it finds wrong would else be found after hours.
rule preflight:
    input:
        index="results/{data}/index.parquet",
        weights=flow.weights,
        baseline=flow.baseline,
    output:
        "results/{data}/models/{model}/preflight.json",
    log:
        "results/{data}/logs/preflight/{model}.log",
    priority: 100
    resources:
        **JOB,
    params:
        options=flow.words("preflight"),
        contents=flow.contents(flow.preflight),
        baseline=flow.baseline_contents,
        version=code_version("preflight"),
    shell:
        "igmask --log {log:q} preflight {input.index:q} {params.options} --output {output:q}"


rule prepare:
    input:
        "results/{data}/index.parquet",
    output:
        "results/{data}/images/{geometry}/{shard}.npy",
        "results/{data}/images/{geometry}/{shard}.parquet",
    log:
        "results/{data}/logs/prepare/{geometry}-{shard}.log",
    priority: 50
    # workflow.cores would raise an error where a cluster has no number of them.
    threads: flow.prepare_threads(workflow.resource_settings.cores)
    resources:
        **JOB,
    params:
        options=flow.words("prepare"),
        version=code_version("prepare"),
    shell:
        "igmask --log {log:q} prepare {input:q} {params.options} --workers {threads}"
        " --output {output[0]:q}"


rule attribute:
    input:
        images=flow.images,
        references=flow.references,
        beside=beside(flow.images, flow.references),
        weights=flow.weights,
        baseline=flow.baseline,
        preflight="results/{data}/models/{model}/preflight.json",
    output:
        "results/{data}/models/{model}/scores/{shard}.npy",
        "results/{data}/models/{model}/scores/{shard}.parquet",
    log:
        "results/{data}/logs/attribute/{model}-{shard}.log",
    priority: 40
    threads: flow.study.compute.threads
    resources:
        **NETWORK,
        gpu=GPU,
    params:
        options=flow.words("attribute"),
        contents=flow.contents(flow.attribute),
        baseline=flow.baseline_contents,
        version=code_version("attribute"),
    shell:
        "igmask --log {log:q} attribute {input.images:q} {params.options}"
        " {ENGINE} {COMPUTE} --output {output[0]:q}"


# Of the control `randomised` alone: weights drawn anew, and what they attribute.
rule randomise:
    input:
        images=flow.images,
        beside=beside(flow.images),
        weights=flow.weights,
        preflight="results/{data}/models/{model}/preflight.json",
    output:
        "results/{data}/models/{model}/randomised/weights.safetensors",
    log:
        "results/{data}/logs/randomise/{model}.log",
    resources:
        **JOB,
    params:
        options=flow.words("randomise"),
        contents=flow.model_contents,
        version=code_version("randomise"),
    shell:
        "igmask --log {log:q} randomise {input.images:q} {params.options} --output {output:q}"


rule attribute_randomised:
    input:
        images=flow.images,
        classes="results/{data}/models/{model}/scores/{shard}.npy",
        references=flow.references,
        beside=beside(flow.images, flow.references),
        classes_beside="results/{data}/models/{model}/scores/{shard}.parquet",
        weights="results/{data}/models/{model}/randomised/weights.safetensors",
        baseline=flow.baseline,
    output:
        "results/{data}/models/{model}/randomised/scores/{shard}.npy",
        "results/{data}/models/{model}/randomised/scores/{shard}.parquet",
    log:
        "results/{data}/logs/randomise/{model}-{shard}.log",
    threads: flow.study.compute.threads
    resources:
        **NETWORK,
        gpu=GPU,
    params:
        options=flow.words("attribute_randomised"),
        contents=flow.contents(flow.attribute),
        baseline=flow.baseline_contents,
        version=code_version("attribute"),
    shell:
        "igmask --log {log:q} attribute {input.images:q} --classes {input.classes:q}"
        " {params.options} {ENGINE} {COMPUTE} --output {output[0]:q}"


rule mask:
    input:
        scores=flow.scores,
        beside=beside(flow.scores),
    output:
        expand(
            "results/{{data}}/models/{{model}}/masks/{p}.{kind}",
            p=flow.mask_files(),
            kind=["npy", "parquet"],
        ),
    log:
        "results/{data}/logs/mask/{model}.log",
    priority: 30
    resources:
        **JOB,
    params:
        options=flow.words("mask"),
        folder=folder,
        version=code_version("mask"),
    shell:
        "igmask --log {log:q} mask {input.scores:q} {params.options} --output {params.folder:q}"


# All conditions of a model in one process, since importing PyTorch takes longer than a small one does.
# It evaluates those only that it has not kept from an earlier run: see igmask/steps/evaluate.py.
rule evaluate:
    input:
        images=flow.images,
        scores=flow.scores,
        randomised=flow.randomised_scores,
        masks=flow.masks,
        beside=beside(flow.images, flow.scores, flow.randomised_scores, flow.masks),
        weights=flow.weights,
        preflight="results/{data}/models/{model}/preflight.json",
    output:
        expand(
            "results/{{data}}/models/{{model}}/records/{name}",
            name=flow.record_files(),
        ),
        expand(
            "results/{{data}}/models/{{model}}/curves/{curve}.{kind}",
            curve=[curve.name for curve in flow.curves],
            kind=["npy", "parquet"],
        ),
    log:
        "results/{data}/logs/evaluate/{model}.log",
    priority: 30
    threads: flow.study.compute.threads
    resources:
        **NETWORK,
        gpu=GPU,
    params:
        options=flow.words("evaluate"),
        folder=folder,
        contents=flow.contents(flow.evaluate),
        version=code_version("evaluate"),
    shell:
        "igmask --log {log:q} evaluate {input.images:q} {params.options} {COMPUTE}"
        " --output {params.folder:q}"


# What a model says of images under another one's masks: a job a pair, so that a new network adds its
# own pairs only.
rule transfer:
    input:
        images=flow.images,
        scores=flow.scores,
        masks=flow.others_masks,
        beside=beside(flow.images, flow.scores, flow.others_masks),
        weights=flow.weights,
        preflight="results/{data}/models/{model}/preflight.json",
    output:
        expand(
            "results/{{data}}/models/{{model}}/of/{{other}}/{name}",
            name=flow.transfer_files("{other}"),
        ),
    log:
        "results/{data}/logs/transfer/{model}-{other}.log",
    threads: flow.study.compute.threads
    resources:
        **NETWORK,
        gpu=GPU,
    params:
        options=flow.words("transfer"),
        folder=folder,
        contents=flow.contents(flow.transfer),
        version=code_version("evaluate"),
    shell:
        "igmask --log {log:q} evaluate {input.images:q} {params.options} {COMPUTE}"
        " --output {params.folder:q}"


# Masks of converged attributions of some images, and what the model says under them.
rule converge:
    input:
        images=flow.images,
        masks=flow.masks,
        beside=beside(flow.images, flow.masks),
        weights=flow.weights,
        baseline=flow.baseline,
        preflight="results/{data}/models/{model}/preflight.json",
    output:
        "results/{data}/models/{model}/converged/agreement.parquet",
        expand(
            "results/{{data}}/models/{{model}}/converged/records/{name}",
            name=flow.converged_files(),
        ),
    log:
        "results/{data}/logs/converge/{model}.log",
    threads: flow.study.compute.threads
    resources:
        **NETWORK,
        gpu=GPU,
    params:
        options=flow.words("converge"),
        folder=folder,
        contents=flow.contents(flow.converge),
        baseline=flow.baseline_contents,
        version=code_version("attribute", "mask", "evaluate", "converge"),
    shell:
        "igmask --log {log:q} converge {input.images:q} {params.options} {COMPUTE}"
        " --output {params.folder:q}"


# Whether the shape of a mask alone tells the class.
rule probe:
    input:
        masks=flow.masks,
        beside=beside(flow.masks),
    output:
        "results/{data}/models/{model}/probe.parquet",
    log:
        "results/{data}/logs/probe/{model}.log",
    priority: 20
    resources:
        **JOB,
    params:
        options=flow.words("probe"),
        version=code_version("probe"),
    shell:
        "igmask --log {log:q} probe {input.masks:q} {params.options} --output {output:q}"


rule tables:
    input:
        flow.records,
        flow.curve_files,
        flow.probes,
        flow.transferred,
        flow.converged,
        beside(flow.curve_files),
    output:
        expand("results/tables/{name}", name=flow.long_forms()),
        *shown(
            expand("results/tables/table{number}.html", number=flow.table_numbers()),
            "tables",
        ),
        expand(
            "results/tables/table{number}.{kind}",
            number=flow.table_numbers(),
            kind=["csv", "md", "tex"],
        ),
    log:
        "results/logs/tables.log",
    priority: 10
    resources:
        **JOB,
    params:
        records=flow.record_folders,
        options=flow.words("tables"),
        folder=folder,
    shell:
        "igmask --log {log:q} tables {params.records:q} {params.options}"
        " --output {params.folder:q}"


rule examples:
    input:
        images=flow.images,
        scores=flow.scores,
        masks=flow.masks,
        beside=beside(flow.images, flow.scores, flow.masks),
        records=flow.example_records,
    output:
        *shown(flow.in_formats(flow.example_figures, first=True), "examples"),
        flow.in_formats(flow.example_figures, first=False),
    log:
        "results/logs/examples-{model}.log",
    resources:
        **JOB,
    params:
        options=flow.words("examples"),
        folder=folder,
    shell:
        "igmask --log {log:q} examples {input.images:q} {input.scores:q} {input.masks:q}"
        " {input.records:q} {params.options} --output {params.folder:q}"


rule curves:
    input:
        expand("results/tables/{name}", name=flow.long_forms()),
    output:
        *shown(flow.in_formats(flow.curve_figures, first=True), "curves"),
        flow.in_formats(flow.curve_figures, first=False),
    log:
        "results/logs/curves.log",
    resources:
        **JOB,
    params:
        options=flow.words("curves_"),
        areas="--areas results/tables/curves.csv" if flow.curves else "",
        folder=folder,
    shell:
        "igmask --log {log:q} curves {input[0]:q} {params.areas} {params.options}"
        " --output {params.folder:q}"


# What the page shows of a model's images, and the page.
rule gallery:
    input:
        images=flow.images,
        scores=flow.scores,
        masks=flow.masks,
        randomised=flow.randomised_scores,
        beside=beside(flow.images, flow.scores, flow.masks, flow.randomised_scores),
        records=flow.records,
    output:
        "results/{data}/models/{model}/gallery.json",
    log:
        "results/{data}/logs/gallery/{model}.log",
    resources:
        **JOB,
    params:
        options=flow.words("gallery"),
        records=flow.records_folder,
    shell:
        "igmask --log {log:q} gallery {input.images:q} {input.scores:q} {input.masks:q}"
        " {params.records:q} {params.options} --output {output:q}"


rule page:
    input:
        tables=rules.tables.output,
        galleries=flow.galleries,
    output:
        *shown(["results/index.html"], "page"),
    log:
        "results/logs/page.log",
    resources:
        **JOB,
    params:
        options=flow.words("page"),
        tables="results/tables",
    shell:
        "igmask --log {log:q} page {params.tables:q} {input.galleries:q} {params.options}"
        " --output {output:q}"


# Not part of the study: `snakemake --cores all readings`.
rule attribute_reading:
    input:
        images=flow.images,
        references=flow.references,
        beside=beside(flow.images, flow.references),
        weights=flow.weights,
        baseline=ways.baseline,
        preflight="results/{data}/models/{model}/preflight.json",
    output:
        "results/{data}/models/{model}/readings/{attributed}/scores/{shard}.npy",
        "results/{data}/models/{model}/readings/{attributed}/scores/{shard}.parquet",
    log:
        "results/{data}/logs/readings/{model}-{attributed}-{shard}.log",
    threads: flow.study.compute.threads
    resources:
        **NETWORK,
        gpu=GPU,
    params:
        options=ways.words("attribute"),
        contents=flow.contents(ways.attribute),
        baseline=ways.baseline_contents,
        version=code_version("attribute"),
    shell:
        "igmask --log {log:q} attribute {input.images:q} {params.options}"
        " {ENGINE} {COMPUTE} --output {output[0]:q}"


rule read:
    input:
        images=flow.images,
        scores=ways.scores,
        beside=beside(flow.images, ways.scores),
        weights=flow.weights,
    output:
        expand(
            "results/{{data}}/models/{{model}}/readings/{{attributed}}/{{score}}-{{by}}/masks/{p}.{kind}",
            p=flow.mask_files(),
            kind=["npy", "parquet"],
        ),
        expand(
            "results/{{data}}/models/{{model}}/readings/{{attributed}}/{{score}}-{{by}}/records/{name}",
            name=ways.record_names(),
        ),
    log:
        mask="results/{data}/logs/readings/{model}-{attributed}-{score}-{by}-mask.log",
        evaluate="results/{data}/logs/readings/{model}-{attributed}-{score}-{by}-evaluate.log",
    threads: flow.study.compute.threads
    resources:
        **NETWORK,
        gpu=GPU,
    params:
        mask=ways.words("mask"),
        evaluate=ways.words("evaluate"),
        masks=folder,
        records=lambda wildcards, output: os.path.dirname(output[-1]),
        contents=flow.contents(ways.evaluate),
        version=code_version("mask", "evaluate"),
    shell:
        "igmask --log {log.mask:q} mask {input.scores:q} {params.mask} --output {params.masks:q}"
        " && igmask --log {log.evaluate:q} evaluate {input.images:q} {params.evaluate} {COMPUTE}"
        " --output {params.records:q}"


rule readings:
    input:
        ways.records,
    output:
        expand(
            "results/tables/{name}",
            name=[
                "readings.csv",
                "sentences.csv",
                "sentences.html",
                "sentences.md",
                "sentences.tex",
            ],
        ),
    log:
        "results/logs/readings.log",
    resources:
        **JOB,
    params:
        folders=lambda wildcards: [f"{of}/records" for of in ways.folders(wildcards)],
        folder=folder,
    shell:
        "igmask --log {log:q} readings {params.folders:q} --output {params.folder:q}"


# The tables of docs/paradox.md: `snakemake --cores all paradox --configfile config/controls.yaml`.
rule paradox:
    input:
        rules.all.input,
        rules.readings.output,
    output:
        "results/paradox.md",
    log:
        "results/logs/paradox.log",
    threads: workflow.resource_settings.cores or 1
    params:
        base=workflow.basedir,
        demo="results/paradox-demo",
    shell:
        "snakemake -s {params.base:q}/Snakefile --configfile {params.base:q}/config.yaml"
        " --directory {params.demo:q} --cores {threads} --quiet rules &> {log:q}"
        " && python {params.base:q}/docs/paradox.py results {params.demo:q}/results"
        " --output {output:q} &>> {log:q}"


# Not part of the study: `snakemake --cores 1 benchmarks`. Nothing else should run meanwhile.
rule benchmarks:
    log:
        kernels="benchmarks/results/bench-kernels.log",
        attributions="benchmarks/results/bench.log",
    params:
        options=f"--device {shlex.quote(flow.study.compute.device)} --output benchmarks/results",
    shell:
        "igmask --log {log.kernels:q} bench kernels {params.options}"
        " && igmask --log {log.attributions:q} bench {params.options}"
