"""Distributed training: the processes that train one network together. The only module that imports torch.distributed."""

from __future__ import annotations

import datetime
import os
import platform
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_STEP_SECONDS = 20
"""Timeout of a collective. torchrun gives the others half a minute to end, so a lost rank ends all within a minute."""
_COMPILE_SECONDS = 1800
"""Timeout where the first step compiles the network."""
_BEAT_SECONDS = 1
_MOST_RANKS = 100_000


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and what they exchange. By default there is a single process.

    Attributes:
        rank: number of this process, 0 to n - 1; only rank 0 writes files.
        n: number of processes (the world size).
        local: number of this process on its machine, which is also the index of its GPU.
        host: process group on the CPUs (gloo), for small messages after each step; None if n = 1.
        pulse: process group for the heartbeat of `barrier`; None if n = 1.
    """

    rank: int = 0
    n: int = 1
    local: int = 0
    host: Any = None
    pulse: Any = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the process that writes files and prints."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """This rank's part of `size` items: the parts are contiguous, and their sizes differ by at most one."""
        return slice(size * self.rank // self.n, size * (self.rank + 1) // self.n)

    def total(self, x: Tensor) -> Tensor:
        """The sum over all ranks (all-reduce), the same on each rank and without gradient."""
        if self.n == 1:
            return x
        x = x.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(x)
        return x

    def gather_shares(self, part: Tensor, size: int) -> Tensor:
        """The parts [share(size), ...] of all ranks as one tensor [size, ...]; only this rank's part gets a gradient."""
        if self.n == 1:
            return part
        own = self.share(size)
        buffer = part.new_zeros(size, *part.shape[1:], requires_grad=False)
        buffer[own] = part.detach()
        buffer = self.total(buffer)
        return torch.cat([buffer[: own.start], part, buffer[own.stop :]])

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module as `DistributedDataParallel`: gradients are averaged over the ranks, buffers are those of rank 0."""
        return module if self.n == 1 else DistributedDataParallel(module)

    def no_sync(self, module: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
        """If `wanted`, each rank accumulates the gradients of a wrapped module without averaging them yet."""
        return module.no_sync() if wanted and isinstance(module, DistributedDataParallel) else nullcontext()

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers of rank 0."""
        if self.n > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def all_max(self, value: int) -> int:
        """The largest of the ranks' numbers, on every rank."""
        if self.n == 1:
            return value
        values = torch.tensor(value)
        distributed.all_reduce(values, distributed.ReduceOp.MAX, group=self.host)
        return int(values)

    def first_message(self, text: str | None) -> str | None:
        """The message of the lowest rank that has one, on every rank; None if no rank has a message."""
        if self.n == 1:
            return text
        return next((f"{t} (rank {k})" for k, t in enumerate(self.gather(text)) if t), None)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, on every rank."""
        values = [value] * self.n
        if self.n > 1:
            distributed.all_gather_object(values, value, group=self.host)
        return values

    def broadcast(self, text: str) -> str:
        """The text of rank 0, on every rank."""
        if self.n == 1:
            return text
        texts = [text]
        distributed.broadcast_object_list(texts, 0, group=self.host)
        return texts[0]

    @contextmanager
    def barrier(self) -> Iterator[None]:
        """A barrier around a block: no rank leaves the block before all have ended it, however long that takes.

        While a rank waits or works, a thread sends a heartbeat, so that a rank that has died or hangs is noticed. An error
        in the block of one rank ends all ranks, each with the reason.

        Raises:
            LostRank: another rank has ended or does not answer.
        """
        if self.n == 1:
            yield
            return
        heartbeat = _Heartbeat(self)
        heartbeat.start()
        try:
            yield
        except BaseException as error:
            heartbeat.end(str(error) or type(error).__name__)
            heartbeat.join(_BEAT_SECONDS + 1)  # long enough to send the reason; the other ranks may be out of reach
            raise
        heartbeat.end("")
        heartbeat.join()
        heartbeat.check()

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """Check that all ranks have the same facts (JSON types, nested to any depth).

        Raises:
            ValueError: a rank has other facts than rank 0. Raised on every rank; the sentence names what differs.
        """
        gathered = self.gather((platform.node(), _flat(facts)))
        first_host, first = gathered[0]
        for rank, (host, other) in enumerate(gathered):
            differs = [name for name in {**first, **other} if first.get(name) != other.get(name)]
            if differs:
                its, ours = (str(known.get(differs[0]))[:64] for known in (other, first))
                more = f", and {len(differs) - 1} more" if len(differs) > 1 else ""
                raise ValueError(
                    f"rank {rank} on {host} differs from rank 0 on {first_host}: its {differs[0]} is {its}, and not {ours}"
                    f"{more}; start all ranks with the same command, code and data"
                )


class _Heartbeat(threading.Thread):
    """Exchanges the ranks' status once a second, until all have ended their block or one has failed or is lost."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(daemon=True)
        self.ranks = ranks
        self.ended = threading.Event()
        self.status: str | None = None  # None inside the block, then "" or the error message
        self.statuses: list[str | None] = [None] * ranks.n
        self.error: RuntimeError | None = None

    def end(self, status: str) -> None:
        self.status = status
        self.ended.set()

    def run(self) -> None:
        try:
            while None in self.statuses and not any(self.statuses):
                self.ended.wait(_BEAT_SECONDS)
                distributed.all_gather_object(self.statuses, self.status, group=self.ranks.pulse)
        except RuntimeError as error:
            self.error = error

    def check(self) -> None:
        if self.error:
            raise self.error
        for rank, status in enumerate(self.statuses):
            if status:
                raise LostRank(f"rank {self.ranks.rank} of {self.ranks.n} stops, since rank {rank} has ended: {status}")


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts as one dictionary, dotted name -> value."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def launched() -> bool:
    """Whether torchrun has started this process together with others."""
    return _environment_number("WORLD_SIZE", 1, 1) > 1


def restarted() -> bool:
    """Whether torchrun has started the processes again after a failure."""
    return _environment_number("TORCHELASTIC_RESTART_COUNT", 0) > 0


def ranks_from_environment() -> Ranks:
    """Rank and number of processes from the environment variables that torchrun sets; nothing is connected.

    Raises:
        ValueError: a variable is missing, is not a number, or contradicts another.
    """
    if not launched():
        return Ranks()
    n = _environment_number("WORLD_SIZE")
    return Ranks(_environment_number("RANK", most=n - 1), n, _environment_number("LOCAL_RANK", most=n - 1))


def _environment_number(name: str, default: int | None = None, least: int = 0, most: int = _MOST_RANKS) -> int:
    """A number that the launcher has set in the environment."""
    text = os.environ.get(name, "" if default is None else str(default))
    if not (re.fullmatch("[0-9]{1,9}", text) and least <= int(text) <= most):
        raise ValueError(
            f"the environment has WORLD_SIZE={os.environ.get('WORLD_SIZE', '')} and {name}={text}: "
            "start several processes by torchrun, which sets them, or unset WORLD_SIZE for one"
        )
    return int(text)


@contextmanager
def process_group(gpu: bool, slow_start: bool) -> Iterator[Ranks]:
    """Connect the processes that torchrun has started, by NCCL if the network is on a GPU and by gloo otherwise.

    Args:
        gpu: whether the network is on a GPU.
        slow_start: whether a step may take minutes, as the first step of a compiled network does. Otherwise a rank that
            does not answer for 20 seconds counts as lost.

    Raises:
        ValueError: there are more processes on this machine than GPUs.
        LostRank: another process has ended, or does not answer.
    """
    ranks = ranks_from_environment()
    if ranks.n == 1:
        yield ranks
        return
    if gpu:
        here = torch.cuda.device_count()
        if ranks.local >= here:
            raise ValueError(
                f"torchrun starts process {ranks.local} on this machine, which has {here} "
                f"{'GPU' if here == 1 else 'GPUs'}: give --nproc-per-node {here}, or --device cpu"
            )
        torch.cuda.set_device(ranks.local)
    timeout = datetime.timedelta(seconds=_COMPILE_SECONDS if slow_start else _STEP_SECONDS)
    try:
        store, rank, n = next(distributed.rendezvous("env://", ranks.rank, ranks.n))  # type: ignore[attr-defined]
        # torchrun keeps its store over restarts, with the addresses of processes that are gone.
        store = distributed.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)  # type: ignore[attr-defined]
        backend = "nccl" if gpu else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=n, timeout=timeout)
        host = distributed.new_group(backend="gloo", timeout=timeout)
        pulse = distributed.new_group(backend="gloo", timeout=datetime.timedelta(seconds=_STEP_SECONDS))
        yield Ranks(ranks.rank, ranks.n, ranks.local, host, pulse)
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise LostRank(f"rank {ranks.rank} of {ranks.n} stops, since another rank is gone or silent: {reason}") from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


class LostRank(Exception):
    """Another process of the run has ended or does not answer."""


def _is_lost(error: RuntimeError) -> bool:
    """Whether the error says that another rank is lost; gloo has no error class of its own, so by its words."""
    words = ("gloo", "pair closure", "Connection closed", "Connection reset", "Broken pipe", "imed out", "NCCL")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)
