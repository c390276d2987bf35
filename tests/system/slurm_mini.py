"""A throw-away Slurm cluster on this machine: as root, with no systemd, no munge and no cgroups.

    with SlurmMini(nodes=3, cpus=2) as slurm:
        slurm.run("srun", "-N3", "hostname")

Its nodes are n1, n2, ...: daemons of this machine with ports of their own. By hand:
`python3 slurm_mini.py [NODES]` keeps one up until it is interrupted."""
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

DAEMONS = ("slurmctld", "slurmd")
# Without TmpFS=%n daemons of one machine would share folders; KillWait is what a drain has.
CONFIG = """\
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
SlurmdTimeout=10
SlurmctldTimeout=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
TmpFS={folder}/tmp.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
PlugStackConfig=/dev/null
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
PartitionName=main Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def missing():
    """What keeps a cluster from being made here, or None."""
    if os.geteuid() != 0:
        return "a Slurm cluster wants root"
    for name in DAEMONS:
        if not find(name):
            return f"no {name} on this machine"
    return None


def find(name):
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


class SlurmMini:
    def __init__(self, nodes=2, cpus=2):
        self.folder = tempfile.mkdtemp(prefix="tandem-slurm-")
        self.daemons, host = [], socket.gethostname().split(".")[0]
        ports = free_ports(nodes + 1)
        with open(self.path("slurm.conf"), "w") as file:
            file.write(CONFIG.format(host=host, port=ports[0], folder=self.folder, nodes=nodes))
            for i in range(nodes):
                file.write(f"NodeName=n{i + 1} NodeHostname={host} NodeAddr=127.0.0.1 "
                           f"Port={ports[i + 1]} CPUs={cpus} RealMemory=1024 State=UNKNOWN\n")
        os.mkdir(self.path("state"))
        self.env = {**os.environ, "SLURM_CONF": self.path("slurm.conf")}
        try:
            self.start("slurmctld", "-D", "-c")
            for i in range(nodes):
                for kind in "spool", "tmp":
                    os.mkdir(self.path(f"{kind}.n{i + 1}"))
                self.start("slurmd", "-D", "-N", f"n{i + 1}")
            self.wait_until_idle(nodes)
        except BaseException:
            self.stop()
            raise

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self, name, *options):
        with open(self.path(f"{name}.{len(self.daemons)}.out"), "wb") as out:
            self.daemons.append(subprocess.Popen(["setpriv", "--pdeathsig", "KILL", find(name), *options],
                                                 env=self.env, stdout=out, stderr=out,
                                                 stdin=subprocess.DEVNULL))

    def run(self, *words, check=True, **more):
        done = subprocess.run(words, env={**self.env, **more.pop("env", {})}, capture_output=True,
                              text=True, timeout=60, **more)
        if check and done.returncode:
            raise AssertionError(f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def wait_until_idle(self, nodes):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            states = self.run("sinfo", "-h", "-N", "-o", "%T", check=False).split()
            if states.count("idle") == nodes:
                return
            time.sleep(0.1)
        raise AssertionError(f"nodes are {states}: {self.logs()}")

    def logs(self):
        text = ""
        for name in sorted(os.listdir(self.folder)):
            if name.endswith((".log", ".out")):
                with open(self.path(name), errors="replace") as file:
                    text += f"{name}: {file.read()[-1500:]}\n"
        return text

    def job_state(self, job):
        found = [word for word in self.run("scontrol", "show", "job", str(job), check=False).split()
                 if word.startswith(("JobState=", "ExitCode="))]
        return dict(word.split("=") for word in found[:2])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """Jobs first, whose processes would outlive the daemons; slurmctld last: it is told by the others."""
        if len(self.daemons) > 1:
            self.run("scancel", "--user=root", check=False)
            end = time.monotonic() + 10
            while self.run("squeue", "-h", check=False).strip() and time.monotonic() < end:
                time.sleep(0.1)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in reversed(self.daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


if __name__ == "__main__":
    with SlurmMini(int(sys.argv[1]) if len(sys.argv) > 1 else 2) as cluster:
        print(f"export SLURM_CONF={cluster.path('slurm.conf')}", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass
