"""Simulated hosts: namespaces with their own network, name and processes, on one bridge."""

import subprocess
from pathlib import Path

import psutil

HEAD, NODES = ("head", "10.77.0.1"), {"node1": "10.77.0.11", "node2": "10.77.0.12"}
"""Host of the tests, and the others. None has a default route, so outside names fail at once."""
BRIDGE = "bridge0"
SPACES = ("--net", "--uts", "--mount", "--pid")


def network(folder):
    """Sets up the name and the bridge of this machine, a namespace made by tests/cluster/run."""
    lines = [f"{address} {name}" for name, address in (HEAD, *NODES.items())]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
    (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    for name in ("hosts", "nsswitch.conf"):
        root("mount", "--bind", folder / name, f"/etc/{name}")  # in this mount namespace alone
    root("hostname", HEAD[0])
    root("ip", "link", "set", "lo", "up")
    root("ip", "link", "add", BRIDGE, "type", "bridge")
    root("ip", "addr", "add", f"{HEAD[1]}/24", "dev", BRIDGE)
    root("ip", "link", "set", BRIDGE, "up")


def root(*command):
    subprocess.run([str(word) for word in command], check=True)


class Host:
    """One host. `kill` ends all of its processes at once; `boot` starts it again.

    Args:
        name: a key of `NODES`.
    """

    def __init__(self, name):
        self.name = name
        self.boot()

    def boot(self):
        """Starts a first process, which adopts and reaps the others, and a cable to the bridge."""
        first = ["sh", "-c", "echo up; while :; do sleep 1000; done"]
        self._holder = subprocess.Popen(
            ["unshare", *SPACES, "--fork", "--kill-child=KILL", "--mount-proc", *first],
            stdout=subprocess.PIPE,
        )
        with self._holder.stdout as stream:
            assert stream.readline() == b"up\n"
        (self._first,) = psutil.Process(self._holder.pid).children()
        cable, pid = f"to-{self.name}", self._first.pid
        # As on a real machine, the address of the card stays the same, since others remember it.
        card = ("name", "eth0", "address", f"02:00:00:00:00:{NODES[self.name][-2:]}")
        root("ip", "link", "add", cable, "type", "veth", "peer", *card, "netns", pid)
        root("ip", "link", "set", cable, "master", BRIDGE, "up")
        for command in (
            ("hostname", self.name),
            ("ip", "link", "set", "lo", "up"),
            ("ip", "addr", "add", f"{NODES[self.name]}/24", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
        ):
            root(*self.on(*command))

    def on(self, *command):
        """Words that run a command on this host."""
        return ["nsenter", f"--target={self._first.pid}", *SPACES, *command]

    def start(self, *command, log, **options):
        """Runs a command on this host in the background and appends its output to a file."""
        with Path(log).open("ab") as stream:
            return subprocess.Popen(
                self.on(*command), stdout=stream, stderr=subprocess.STDOUT, **options
            )

    def processes(self, word):
        """Processes of this host with a word in their command line."""
        space = Path(f"/proc/{self._first.pid}/ns/pid").readlink()
        matching = []
        for process in psutil.process_iter():
            try:
                is_here = Path(f"/proc/{process.pid}/ns/pid").readlink() == space
                if is_here and word in process.cmdline():
                    matching.append(process)
            except (OSError, psutil.Error):
                continue  # it has ended
        return matching

    def kill(self, *, unplug=False):
        """Sends SIGKILL to all processes; `unplug` cuts the cable first, so no peer notices."""
        if unplug:
            root("ip", "link", "set", f"to-{self.name}", "down")
        self._holder.kill()  # and with it the first process, and with that all others
        self._holder.wait()
        self._first.wait(10)
        subprocess.run(["ip", "link", "del", f"to-{self.name}"], stderr=subprocess.DEVNULL)
