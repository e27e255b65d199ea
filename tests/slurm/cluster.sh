#!/usr/bin/env bash
# A real Slurm with two nodes, n1 and n2 of two cores each, on this machine: for tests, and to try the sbatch files of slurm/ without a cluster.
# Everything listens on loopback and lives in one directory. Needs root, and Debian's slurm-wlm and munge.
# Usage: cluster.sh start DIR     writes DIR/env.sh: source it, then sbatch, srun, squeue ... speak to this cluster
#        cluster.sh stop DIR      cancels its jobs and ends its daemons
# Partitions: `work` (default) and `urgent`, whose jobs preempt those of `work`, which go back to the queue.
set -euo pipefail

fail() { echo "cluster.sh: $*" >&2; exit 1; }

# free_ports N: N ports of loopback that nothing listens on.
free_ports() {
  python3 - "$1" <<'PY'
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in held:
    s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in held])
PY
}

# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local seconds=$1 what=$2
  shift 2
  for ((i = 0; i < 4 * seconds; ++i)); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.25
  done
  fail "$what did not come within $seconds s; logs are in $dir"
}

both_nodes_idle() { [ "$(sinfo -h -p work -t idle -o %D)" = 2 ]; }

start() {
  [ "$(id -u)" = 0 ] || fail "needs root (slurmd starts jobs)"
  for program in munged slurmctld slurmd srun; do
    command -v "$program" >/dev/null || fail "$program is missing; Debian: apt-get install slurm-wlm munge"
  done
  mkdir -p "$dir"/{state,spool_n1,spool_n2,tmp_n1,tmp_n2}
  chmod 755 "$dir"
  local host ctl p1 p2
  host=$(hostname -s)
  read -r ctl p1 p2 <<< "$(free_ports 3)"

  (umask 077 && head -c 128 /dev/urandom > "$dir/munge.key")
  munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" \
    --seed-file="$dir/munge.seed"

  cat > "$dir/slurm.conf" <<CONF
ClusterName=uqa_test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctl
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
CredType=cred/munge
MpiDefault=pmix
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool_%n
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd_%n.log
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd_%n.pid
TmpFS=$dir/tmp_%n
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=5
KillWait=15
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$p1 CPUs=2 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$p2 CPUs=2 State=UNKNOWN
PartitionName=work Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
  cat > "$dir/env.sh" <<ENV
unset \${!SLURM_@}
export SLURM_CONF='$dir/slurm.conf'
ENV
  source "$dir/env.sh"
  slurmctld -f "$dir/slurm.conf" -c
  slurmd -N n1 -f "$dir/slurm.conf"
  slurmd -N n2 -f "$dir/slurm.conf"
  wait_for 90 "the nodes" both_nodes_idle
}

stop() {
  [ -e "$dir/env.sh" ] || return 0
  source "$dir/env.sh"
  timeout 20 scancel --user=root >/dev/null 2>&1 || true
  for name in slurmd_n1 slurmd_n2 slurmctld munged; do
    local pid
    pid=$(cat "$dir/$name.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for ((i = 0; i < 80; ++i)); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.25
    done
    kill -9 "$pid" 2>/dev/null || true
  done
}

[ $# = 2 ] || { sed -n '2,6s/^# //p' "$0"; exit 2; }
mkdir -p "$2"
dir=$(cd "$2" && pwd)
case "$1" in
  start|stop) "$1" ;;
  *) fail "'$1' is neither start nor stop" ;;
esac
