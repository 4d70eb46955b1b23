#!/usr/bin/env bash
# A real SLURM on this one machine, with two virtual nodes: "slurm_here.sh start" or "slurm_here.sh stop".
# For Debian and Ubuntu, as root, on a machine that may be changed: it installs packages and writes
# /etc/slurm/slurm.conf, unless there is one that it did not write.
set -euo pipefail

host=$(hostname -s)
packages="slurmd slurmctld slurm-client munge"

conf=/etc/slurm/slurm.conf
mark="# by brainstage's tests/faults/slurm_here.sh"

start() {
    if [ -f "$conf" ] && ! grep -qF "$mark" "$conf"; then
        echo "$conf is there already and is left alone" >&2
        return 1
    fi
    command -v slurmctld >/dev/null || {
        DEBIAN_FRONTEND=noninteractive apt-get update -qq
        # shellcheck disable=SC2086 # one word each
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
    }
    getent hosts "$host" >/dev/null || echo "127.0.0.1 $host" >>/etc/hosts
    mkdir -p /etc/slurm /run/munge /var/lib/slurm/{ctld,slurmd-n1,slurmd-n2} /var/log/slurm
    chown munge:munge /run/munge
    cat >"$conf" <<CONF
$mark
ClusterName=lab
SlurmctldHost=$host
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=/var/lib/slurm/ctld
SlurmdSpoolDir=/var/lib/slurm/slurmd-%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd-%n.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmctldTimeout=30
SlurmdTimeout=20
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=2 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
    pgrep -x munged >/dev/null || runuser -u munge -- /usr/sbin/munged
    slurmctld -c
    slurmd -N n1
    slurmd -N n2
    for _ in $(seq 60); do
        [ "$(sinfo -h -t idle -o %D 2>/dev/null | head -1)" = 2 ] && return 0
        sleep 0.5
    done
    echo "SLURM did not come up; see /var/log/slurm" >&2
    return 1
}

stop() {
    scancel --state=RUNNING,PENDING --user="$(id -un)" 2>/dev/null || true
    for file in /run/slurmd-n1.pid /run/slurmd-n2.pid /run/slurmctld.pid; do
        [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null || true
    done
}

"$1"
