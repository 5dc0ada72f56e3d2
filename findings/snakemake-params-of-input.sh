#!/usr/bin/env bash
# Snakemake and a setting that a rule's params take from the configuration.
#
# Expected: a job is run again when a value of its params changes, whatever function gives it.
# Seen:     not if the function also takes `input` (or output, threads, resources): nothing of what
#           such a function gives is kept or compared, the configuration's part included, and there
#           is "nothing to be done" (snakemake/snakemake#3154, reported as #3895).
# So:       the words of igmask's jobs are made of wildcards alone, and folders of output apart
#           (igmask/plan.py, the Snakefile; the tests of what a changed setting runs again).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet snakemake==9.27.1 2> /dev/null
cd "$folder"
export PATH="$folder/environment/bin:$PATH"
echo "snakemake $(snakemake --version)"
cat > Snakefile <<'SNAKEFILE'
rule of_wildcards:
    input: "in.txt"
    output: "of_wildcards.txt"
    params: word=lambda wildcards: config["word"]
    shell: "echo {params.word} > {output}"

rule of_input:
    input: "in.txt"
    output: "of_input.txt"
    params: word=lambda wildcards, input: config["word"]
    shell: "echo {params.word} > {output}"
SNAKEFILE
touch in.txt
snakemake --cores 1 --quiet all --config word=old -- of_wildcards.txt of_input.txt 2> /dev/null
for rule in of_wildcards of_input; do
  snakemake --cores 1 --dry-run --config word=new -- "$rule.txt" > "$rule.log" 2>&1
  echo "$rule, which says $(cat "$rule.txt"), with another word:" \
    "$(grep -m 1 -oE 'Params have changed|Nothing to be done' "$rule.log")"
done
grep -q "Params have changed" of_wildcards.log && grep -q "Nothing to be done" of_input.log
