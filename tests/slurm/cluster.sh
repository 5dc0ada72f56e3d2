#!/usr/bin/env bash
# A Slurm of one node, this machine: no systemd, no root needed, all its state in one folder.
#
#   tests/slurm/cluster.sh start FOLDER && source FOLDER/env
#   tests/slurm/cluster.sh stop FOLDER
#
# Needs slurm-wlm and munge of Debian. It has one GPU, which is no GPU, and kills what takes more
# memory than it asked for.
set -euo pipefail

if [[ $# != 2 || ! $1 =~ ^(start|stop)$ ]]; then
  echo "usage: $0 start|stop FOLDER" >&2
  exit 2
fi
mkdir -p "$2"
folder=$(cd "$2" && pwd)
export SLURM_CONF=$folder/slurm.conf PATH=$PATH:/usr/sbin

stop() {
  local name pid
  for name in slurmd slurmctld munged; do
    pid=$(cat "$folder/$name.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in {1..100}; do
      kill -0 "$pid" 2>/dev/null || continue 2
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

configure() {
  local ports gpu=$folder/gpu
  ports=($(shuf --input-range=20000-32000 --head-count=2))
  # Slurm wants a character device for a GPU.
  rm -f "$gpu"
  mknod "$gpu" c 1 3 2>/dev/null || gpu=/dev/tty
  echo "Name=gpu File=$gpu" > "$folder/gres.conf"
  cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmdPort=${ports[1]}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/controller
SlurmdSpoolDir=$folder/node
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
MinJobAge=3600
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
GresTypes=gpu
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=$(free --mebi | awk '/^Mem/ {print $2 - 500}') Gres=gpu:1
PartitionName=main Nodes=ALL Default=YES DefMemPerCPU=500
CONF
  # Snakemake's plugin takes SLURM_CONF away before it calls srun.
  mkdir -p "$folder/bin"
  printf '#!/bin/sh\nSLURM_CONF=%q exec %q "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$folder/bin/srun"
  chmod +x "$folder/bin/srun"
  printf 'export SLURM_CONF=%q PATH=%q:$PATH\n' "$SLURM_CONF" "$folder/bin" > "$folder/env"
}

start() {
  mkdir -p "$folder"/{controller,node}
  chmod 755 "$folder"
  configure
  (umask 077 && head --bytes 1024 /dev/urandom > "$folder/munge.key")
  # --force: in spite of a folder above that everyone may write to, as /tmp is.
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --seed-file="$folder/munged.seed" \
    --log-file="$folder/munged.log" 2>> "$folder/munged.log"
  slurmctld -c # knows of no earlier start
  slurmd
  while ((SECONDS < 30)); do
    [[ $(timeout 2 sinfo --noheader --format %T 2>/dev/null) == idle ]] && return
    sleep 0.1
  done
  echo "$0: Slurm did not start; its logs:" >&2
  tail --lines 5 "$folder"/*.log >&2
  stop
  exit 1
}

"$1"
