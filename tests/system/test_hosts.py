"""Several machines, as network namespaces of this one with cables and a switch between them."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agents import Server, alive, finished, state
from support.hosts_worker import address, namespace
from support.images import write_cifar
from support.runs import assert_same

HOSTS, PAIRS, SWITCH = 2, 4, -1
ARGUMENTS = ["train", "digits-esd", "--width", "2", "--T", "2", "--subset", "300", "--batch", "50", "--epochs", "3"]
STEPS = 6
"""Of an epoch."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def plug(host: int) -> None:
    ip("-n", namespace(SWITCH), "link", "set", f"port{host}", "master", "bridge0", "up")


class Pair:
    """Two hosts on which one run trains."""

    def __init__(self, server: Server, first: int, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.hosts = range(first, first + HOSTS)
        self.pids: list[int] = []

    def begin(self, *arguments: str, cut: tuple[int, str, int] | None = None) -> None:
        """torchrun's agent with `spikerate ARGUMENTS` on both; `cut` is the rank whose cable is pulled, and where."""
        for rank in range(HOSTS):
            self.start(rank, *arguments, cut=cut[1:] if cut and cut[0] == rank else ("", 0))

    def start(self, rank: int, *arguments: str, cut: tuple[str, int] = ("", 0), folder: Path | None = None) -> None:
        plug(self.hosts[rank])
        self.log(rank).write_text("")
        task = [self.hosts[rank], HOSTS, str(folder or self.folder), arguments, *cut]
        self.pids.append(self.server.start(*task, log=self.log(rank)))

    def log(self, rank: int) -> Path:
        return self.folder / f"host{self.hosts[rank]}.log"

    def said(self) -> list[str]:
        """What was said on each host, once both have ended, which they do within a minute."""
        texts = [finished(pid, self.log(rank), 60) for rank, pid in enumerate(self.pids)]
        self.pids.clear()
        return texts

    def kill(self, rank: int) -> None:
        """All processes of a host."""
        for process in members(self.pids[rank]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def close(self) -> None:
        for rank in range(len(self.pids)):
            self.kill(rank)


def members(session: int) -> list[int]:
    """The processes of a session, as those of a host are."""
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if state(pid)[3:4] == [str(session)]]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Pair]]:
    """Hosts with cables to one switch; what is started on them ends with them."""
    if not shutil.which("ip"):
        pytest.skip("iproute2 is not installed")
    hosts = range(HOSTS * PAIRS)
    names = [namespace(host) for host in (SWITCH, *hosts)]
    with contextlib.ExitStack() as down:
        try:
            for name in names:
                ip("netns", "add", name)
                down.callback(ip, "netns", "del", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", names[0], "link", "add", "name", "bridge0", "type", "bridge")
            ip("-n", names[0], "link", "set", "bridge0", "up")
            for host in hosts:
                cable = ["type", "veth", "peer", "name", "eth0", "netns", namespace(host)]
                ip("-n", names[0], "link", "add", "name", f"port{host}", *cable)
                ip("-n", namespace(host), "addr", "add", f"{address(host)}/24", "dev", "eth0")
                ip("-n", namespace(host), "link", "set", "eth0", "up")
                # torchrun's own agent waits for an answer of the lost host for as long as TCP repeats a packet.
                ip("netns", "exec", namespace(host), "sh", "-c", "echo 3 > /proc/sys/net/ipv4/tcp_retries2")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no right to make network namespaces here: {error.stderr}")
        server, folder = Server("hosts_worker.py"), tmp_path_factory.mktemp("cluster")
        down.callback(server.close)
        made = [Pair(server, first, folder) for first in hosts[::HOSTS]]
        for pair in made:
            down.callback(pair.close)
        yield made


LOST = {
    "in an epoch": (0, "step", STEPS + 2),
    "in a checkpoint": (0, "checkpoint", 3),
    "without power": (1, "step", STEPS + 2),
}
"""A run -> the rank whose cable is pulled, and where."""


@pytest.fixture(scope="module")
def said(pairs: list[Pair]) -> dict[str, list[list[str]]]:
    """Of each run that is lost, what was said on its hosts, then and after it was resumed: all at once, most of it waits.

    Beside them one that is not lost, over a slow link, which changes nothing.
    """
    slow = ["root", "tbf", "rate", "4mbit", "burst", "32kbit", "latency", "2s"]
    whole, *others = pairs
    for host in whole.hosts:
        if subprocess.run(["tc", "-n", namespace(SWITCH), "qdisc", "add", "dev", f"port{host}", *slow]).returncode:
            pytest.skip("this kernel makes no link slow")
    whole.begin(*ARGUMENTS, "--out", "unbroken")
    for pair, (name, cut) in zip(others, LOST.items(), strict=True):
        pair.begin(*ARGUMENTS, "--out", name, cut=cut)
    # Without power a host sends nothing more, not even that its connections are closed.
    rank = LOST["without power"][0]
    while "is pulled" not in pair.log(rank).read_text():
        assert alive(pair.pids[rank]), pair.log(rank).read_text()
        time.sleep(0.05)
    pair.kill(rank)
    found = {name: [pair.said()] for pair, name in zip(others, LOST, strict=True)}
    for pair, name in zip(others, LOST, strict=True):
        pair.begin("train", "--resume", name)
    for pair, name in zip(others, LOST, strict=True):
        found[name].append(pair.said())
    assert all("status 0" in text for text in whole.said())
    for host in whole.hosts:
        subprocess.run(["tc", "-n", namespace(SWITCH), "qdisc", "del", "dev", f"port{host}", "root"], check=True)
    return found


@pytest.mark.parametrize("name", LOST)
def test_a_lost_host_ends_all_within_a_minute_and_changes_nothing(
    name: str, pairs: list[Pair], said: dict[str, list[list[str]]]
) -> None:
    lost, resumed = said[name]
    for rank, text in enumerate(lost[:1] if name == "without power" else lost):
        assert f"spikerate: rank {rank} of {HOSTS} stops, since another rank is gone or silent: " in text
        assert "status 1" in text
    assert all("status 0" in text for text in resumed), resumed
    assert_same(pairs[0].folder / "unbroken", pairs[0].folder / name)


def test_a_folder_that_is_not_shared_is_said_at_the_start(pairs: list[Pair], said: dict[str, list[list[str]]]) -> None:
    """A copy of it is none, either."""
    shared = pairs[0].folder
    (shared / "own disk").mkdir()
    shutil.copytree(shared / "unbroken", shared / "own disk" / "unbroken")
    for pair, arguments in zip(pairs, ([*ARGUMENTS, "--out", "apart"], ["train", "--resume", "unbroken"]), strict=False):
        for rank, folder in enumerate((shared, shared / "own disk")):
            pair.start(rank, *arguments, folder=folder)
    for pair, name in zip(pairs, ("apart", "unbroken"), strict=False):
        for text in pair.said():
            assert re.search(rf"spikerate: rank 1 on \S+ does not see the run folder {name} as rank 0 on \S+ has", text)
            assert "status 2" in text


def test_ranks_that_differ_are_named_at_the_start(pairs: list[Pair], tmp_path: Path) -> None:
    """One may have another setting, or shuffled labels on its own disk."""
    small = ["train", "cifar10-small-rate", "--no-compile", "--data.validation", "4", "--width", "2", "--batch", "4"]
    for rank, folder in enumerate((tmp_path / "ours", tmp_path / "shuffled")):
        folder.mkdir()
        file = write_cifar(folder) / "data_batch_2"
        if rank == 1:
            batch = pickle.loads(file.read_bytes())
            file.write_bytes(pickle.dumps(batch | {b"labels": batch[b"labels"][::-1]}, protocol=2))
        setting = ["--optim.lr", "0.3"] if rank == 1 else []
        pairs[0].start(rank, *small, "--data", str(tmp_path / "ours"), *setting, "--out", "differs")
        pairs[1].start(rank, *small, "--data", str(folder), "--out", "differs")
    names = (r"run\.optim\.lr is 0\.3, and not 0\.1;", r"data\.sha256\.data_batch_2 is \w+, and not \w+;")
    for pair, name in zip(pairs, names, strict=False):
        for text in pair.said():
            assert re.search(rf"spikerate: rank 1 on \S+ differs from rank 0 on \S+: its {name}", text), text
            assert "status 2" in text
    assert not (pairs[0].folder / "differs").exists()
