"""A real Slurm of two nodes without accounting; all daemons are children of this process."""

import os
import secrets
import shutil
import subprocess

from hosts import HEAD, NODES, Host
from jobs import text, wait_until

DAEMONS = ("munged", "slurmctld", "slurmd")
CONF = """
ClusterName=msrec
SlurmctldHost={head}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its old credentials have expired, two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=1,sched_min_interval=100000,requeue_delay=1,batch_sched_delay=0
ReturnToService=2
KillWait=10
MinJobAge=3600
JobRequeue=1
# A third of this passes between two checks of the nodes, after which waiting jobs are checked.
SlurmdTimeout=15
MessageTimeout=30
{nodes}
PartitionName=msrec Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""
NODE = "NodeName={name} NodeHostname={name} NodeAddr={address} CPUs=1 RealMemory=8000 State=UNKNOWN"


def missing():
    """First program that is not installed, or None."""
    return next((name for name in DAEMONS if shutil.which(name) is None), None)


class Slurm:
    """A running Slurm.

    Args:
        folder: folder with a short path, for sockets.
    """

    def __init__(self, folder):
        self.folder = folder
        self._daemons = []
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (folder / name).mkdir()
        nodes = "\n".join(NODE.format(name=n, address=a) for n, a in NODES.items())
        conf = CONF.format(head=HEAD[0], address=HEAD[1], folder=folder, nodes=nodes)
        (folder / "slurm.conf").write_text(conf)
        (folder / "plugstack.conf").touch()
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o400)
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MUNGE_SOCKET": str(folder / "munge.socket"),
        }
        options = [f"--{key}={folder}/munge.{key.split('-')[0]}" for key in ("key-file", "socket")]
        files = [f"--{key}-file={folder}/munge.{key}" for key in ("pid", "log", "seed")]
        self._start("munged", "--foreground", "--force", *options, *files)
        wait_until((folder / "munge.socket").exists, "munged", 10)
        self._start("slurmctld", "-D", "-c")
        self.nodes = {name: Host(name) for name in NODES}
        for name, node in self.nodes.items():
            self._start("slurmd", "-D", "-N", name, on=node)
        wait_until(self._is_up, "two idle nodes", 60)

    def _start(self, *words, on=None):
        command = on.on(*words) if on else list(words)
        with (self.folder / "daemons.log").open("ab") as log:
            daemon = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | self.environment
            )
        self._daemons.append(daemon)

    def _is_up(self):
        assert all(d.poll() is None for d in self._daemons), text(self.folder / "daemons.log")
        return self.command("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split() == list(NODES)

    def command(self, *words):
        """Output of a Slurm command."""
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=os.environ | self.environment,
        )
        return done.stdout

    def restarts(self, job):
        """Number of times that a job was requeued."""
        shown = self.command("scontrol", "show", "job", job)
        return max(int(word.partition("=")[2]) for word in shown.split() if "Restarts=" in word)

    def stop(self):
        """Ends all daemons, the last one first."""
        for node in self.nodes.values():
            node.kill()
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
