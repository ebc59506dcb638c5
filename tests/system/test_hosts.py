"""Several machines, as network namespaces of this one with cables and a switch between them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import ROOT
from support.hosts_worker import address, namespace
from support.images import write_cifar
from support.runs import assert_same

HOSTS, SWITCH = 2, -1
ARGUMENTS = ["train", "digits-esd", "--width", "2", "--T", "2", "--subset", "300", "--batch", "50", "--epochs", "3"]
STEPS = 6
"""Of an epoch."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def plug(host: int) -> None:
    ip("-n", namespace(SWITCH), "link", "set", f"port{host}", "master", "bridge0", "up")


class Cluster:
    """Hosts with cables to one switch; what is started on them ends with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pids: list[int] = []
        worker = ROOT / "tests" / "support" / "hosts_worker.py"
        self.server = subprocess.Popen(
            [sys.executable, "-W", "ignore", worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, host: int, *arguments: str, cut: tuple[str, int] = ("", 0), folder: Path | None = None) -> None:
        """torchrun's agent with `spikerate ARGUMENTS` on a host; `cut` is where its cable is pulled."""
        assert self.server.stdin is not None and self.server.stdout is not None
        self.log(host).write_text("")
        task = [host, HOSTS, str(folder or self.folder), arguments, *cut, str(self.log(host))]
        print(json.dumps(task), file=self.server.stdin, flush=True)
        self.pids.append(int(self.server.stdout.readline()))

    def log(self, host: int) -> Path:
        return self.folder / f"host{host}.log"

    def said(self) -> list[str]:
        """What was said on each host, once all have ended, which they do within a minute."""
        end = time.monotonic() + 60
        while any(alive(pid) for pid in self.pids):
            said = "\n".join(self.log(host).read_text() for host in range(HOSTS))
            assert time.monotonic() < end, said
            time.sleep(0.05)
        self.pids.clear()
        return [self.log(host).read_text() for host in range(HOSTS)]

    def run(self, *arguments: str) -> list[str]:
        for host in range(HOSTS):
            plug(host)
            self.start(host, *arguments)
        return self.said()

    def kill(self, pid: int) -> None:
        """All processes of a host."""
        for process in members(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def close(self) -> None:
        for pid in self.pids:
            self.kill(pid)
        self.server.kill()
        self.server.communicate()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def members(session: int) -> list[int]:
    """The processes of a session, as those of a host are."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not shutil.which("ip"):
        pytest.skip("iproute2 is not installed")
    names = [namespace(host) for host in (SWITCH, *range(HOSTS))]
    with contextlib.ExitStack() as down:
        try:
            for name in names:
                ip("netns", "add", name)
                down.callback(ip, "netns", "del", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", names[0], "link", "add", "name", "bridge0", "type", "bridge")
            ip("-n", names[0], "link", "set", "bridge0", "up")
            for host in range(HOSTS):
                cable = ["type", "veth", "peer", "name", "eth0", "netns", namespace(host)]
                ip("-n", names[0], "link", "add", "name", f"port{host}", *cable)
                ip("-n", namespace(host), "addr", "add", f"{address(host)}/24", "dev", "eth0")
                ip("-n", namespace(host), "link", "set", "eth0", "up")
                # torchrun's own agent waits for an answer of the lost host for as long as TCP repeats a packet.
                ip("netns", "exec", namespace(host), "sh", "-c", "echo 3 > /proc/sys/net/ipv4/tcp_retries2")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no right to make network namespaces here: {error.stderr}")
        made = Cluster(tmp_path_factory.mktemp("cluster"))
        down.callback(made.close)
        yield made


@pytest.fixture(scope="module")
def unbroken(cluster: Cluster) -> Path:
    """Over a slow link, which changes nothing."""
    slow = ["root", "tbf", "rate", "4mbit", "burst", "32kbit", "latency", "2s"]
    for host in range(HOSTS):
        if subprocess.run(["tc", "-n", namespace(SWITCH), "qdisc", "add", "dev", f"port{host}", *slow]).returncode:
            pytest.skip("this kernel makes no link slow")
    said = cluster.run(*ARGUMENTS, "--out", "unbroken")
    assert all("status 0" in text for text in said), said
    for host in range(HOSTS):
        subprocess.run(["tc", "-n", namespace(SWITCH), "qdisc", "del", "dev", f"port{host}", "root"], check=True)
    return cluster.folder / "unbroken"


@pytest.mark.parametrize("cut", [("step", STEPS + 2), ("checkpoint", 3)], ids=["in an epoch", "in a checkpoint"])
def test_a_cut_link_ends_all_within_a_minute_and_changes_nothing(
    cluster: Cluster, unbroken: Path, cut: tuple[str, int]
) -> None:
    name = cut[0]
    for host in range(HOSTS):
        plug(host)
        cluster.start(host, *ARGUMENTS, "--out", name, cut=cut if host == 0 else ("", 0))
    for rank, said in enumerate(cluster.said()):
        assert f"spikerate: rank {rank} of {HOSTS} stops, since another rank is gone or silent: " in said
        assert "status 1" in said
    assert "finished" not in (cluster.folder / name / "run.json").read_text()
    said = cluster.run("train", "--resume", name)
    assert all("status 0" in text for text in said), said
    assert_same(unbroken, cluster.folder / name)


def test_a_lost_host_ends_the_others_and_changes_nothing(cluster: Cluster, unbroken: Path) -> None:
    """Without power it sends nothing more, not even that its connections are closed."""
    for host in range(HOSTS):
        plug(host)
        cluster.start(host, *ARGUMENTS, "--out", "lost", cut=("step", STEPS + 2) if host == 1 else ("", 0))
    while "is pulled" not in cluster.log(1).read_text():
        time.sleep(0.05)
    cluster.kill(cluster.pids[1])
    assert "spikerate: rank 0 of 2 stops, since another rank is gone or silent: " in cluster.said()[0]
    assert all("status 0" in text for text in cluster.run("train", "--resume", "lost"))
    assert_same(unbroken, cluster.folder / "lost")


@pytest.mark.parametrize("resumed", [False, True])
def test_a_folder_that_is_not_shared_is_said_at_the_start(cluster: Cluster, unbroken: Path, resumed: bool) -> None:
    """A copy of it is none, either."""
    own = cluster.folder / f"own disk {resumed}"
    own.mkdir()
    if resumed:
        shutil.copytree(unbroken, own / "unbroken")
    arguments = ["train", "--resume", "unbroken"] if resumed else [*ARGUMENTS, "--out", "apart"]
    for host, folder in enumerate((cluster.folder, own)):
        plug(host)
        cluster.start(host, *arguments, folder=folder)
    for said in cluster.said():
        assert re.search(r"spikerate: rank 1 on \S+ does not see the run folder (apart|unbroken) as rank 0 on \S+ has", said)
        assert "status 2" in said


@pytest.mark.parametrize("other", ["a setting", "labels"])
def test_ranks_that_differ_are_named_at_the_start(cluster: Cluster, tmp_path: Path, other: str) -> None:
    """One may have another setting, or shuffled labels on its own disk."""
    small = ["train", "cifar10-small-rate", "--no-compile", "--data.validation", "4", "--width", "2", "--batch", "4"]
    for host in range(HOSTS):
        data = tmp_path / str(host)
        data.mkdir()
        file = write_cifar(data) / "data_batch_2"
        if other == "labels" and host == 1:
            batch = pickle.loads(file.read_bytes())
            file.write_bytes(pickle.dumps(batch | {b"labels": batch[b"labels"][::-1]}, protocol=2))
        setting = ["--optim.lr", "0.3"] if other == "a setting" and host == 1 else []
        plug(host)
        cluster.start(host, *small, "--data", str(data), *setting, "--out", "differs")
    names = {
        "a setting": r"run\.optim\.lr is 0\.3, and not 0\.1;",
        "labels": r"data\.sha256\.data_batch_2 is \w+, and not \w+;",
    }
    for said in cluster.said():
        assert re.search(rf"spikerate: rank 1 on \S+ differs from rank 0 on \S+: its {names[other]}", said), said
        assert "status 2" in said
    assert not (cluster.folder / "differs").exists()
