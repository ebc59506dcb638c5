"""Hosts of a cluster as network namespaces: each runs torchrun's agent, in a process forked from one that has imported all.

Standard input: lines of JSON, [host, hosts of a run, folder, arguments of spikerate, "", "step" or "checkpoint", number,
log]. The words before the log say when this host's cable is pulled: in a step, or in a checkpoint as rank 0 writes it, of
that number.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from spikerate.cli.live import TrainingView
from spikerate.cli.main import main
from spikerate.runs.record import RunFolder
from spikerate.system import dist
from support.agents import serve

PORT, CLONE_NEWNET = 29500, 0x40000000
SILENT_SECONDS = 4


def namespace(host: int) -> str:
    """Of a host, -1 for the switch, in the cluster of the test process, which the server inherits."""
    return f"spikerate-{os.environ.setdefault('SPIKERATE_CLUSTER', str(os.getpid()))}-{host}"


def address(host: int) -> str:
    return f"10.211.55.{host + 1}"


def pull_the_cable(host: int) -> None:
    """Packets vanish without a word, as behind a switch."""
    subprocess.run(["ip", "-n", namespace(-1), "link", "set", f"port{host}", "nomaster"], check=True)
    print(f"the cable of host {host} is pulled", flush=True)


def before(function: Callable[..., Any], number: int, host: int) -> Callable[..., Any]:
    """The function, of which the call of that number finds the cable pulled."""
    calls: list[None] = []

    def wrapped(*args: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            pull_the_cable(host)
        return function(*args)

    return wrapped


def work(arguments: list[str], host: int, where: str, number: int) -> None:
    dist._STEP_SECONDS = SILENT_SECONDS
    if where == "step":
        TrainingView.step = before(TrainingView.step, number, host)  # type: ignore[method-assign]
    elif where == "checkpoint":
        RunFolder.save = before(RunFolder.save, number, host)  # type: ignore[method-assign]
    status = main(arguments)
    print(f"status {status}", flush=True)
    sys.exit(status)


def be_a_host(host: int, hosts: int, folder: str, arguments: list[str], where: str, number: int) -> None:
    with Path("/run/netns", namespace(host)).open() as net:
        if ctypes.CDLL(None, use_errno=True).setns(net.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    os.chdir(folder)
    os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
    first = host - host % hosts
    config = LaunchConfig(
        min_nodes=hosts,
        max_nodes=hosts,
        nproc_per_node=1,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint=f"{address(first)}:{PORT}",
        rdzv_configs={"is_host": host == first, "read_timeout": SILENT_SECONDS},
        max_restarts=0,
        start_method="fork",
        local_addr=address(host),
        monitor_interval=0.1,
    )
    elastic_launch(config, work)(arguments, host, where, number)


if __name__ == "__main__":
    serve(be_a_host)
