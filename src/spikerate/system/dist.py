"""The processes that train one network together; the only importer of torch.distributed."""

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
"""With the half minute that torchrun gives the others to end, a lost rank ends all of them within a minute."""
_COMPILE_SECONDS = 1800
_BEAT_SECONDS = 1
_MOST_RANKS = 100_000


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; one alone by default.

    Attributes:
        rank: this process, 0 to n - 1; only rank 0 writes.
        n: how many there are.
        local: this process's number on its machine, which is that of its GPU.
        host: a group of the processors, for what is agreed upon after each step; None where n = 1.
        pulse: another, by which a rank shows that it is there while it reads data or writes a checkpoint.
    """

    rank: int = 0
    n: int = 1
    local: int = 0
    host: Any = None
    pulse: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def share(self, size: int) -> slice:
        """Which of `size` things are this rank's: contiguous parts that differ by one at most."""
        return slice(size * self.rank // self.n, size * (self.rank + 1) // self.n)

    def total(self, x: Tensor) -> Tensor:
        """The sum over all ranks, the same on each; a constant for the gradient."""
        if self.n == 1:
            return x
        x = x.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(x)
        return x

    def whole(self, part: Tensor, size: int) -> Tensor:
        """All ranks' parts [share(size), ...] as one [size, ...]; the gradient goes to this rank's own part."""
        if self.n == 1:
            return part
        own = self.share(size)
        buffer = part.new_zeros(size, *part.shape[1:], requires_grad=False)
        buffer[own] = part.detach()
        buffer = self.total(buffer)
        return torch.cat([buffer[: own.start], part, buffer[own.stop :]])

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over the ranks, and its buffers those of rank 0."""
        return module if self.n == 1 else DistributedDataParallel(module)

    def apart(self, module: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
        """Where wanted, gradients of a wrapped module are added up on each rank, and not yet averaged."""
        return module.no_sync() if wanted and isinstance(module, DistributedDataParallel) else nullcontext()

    def align(self, module: nn.Module) -> None:
        """Give every rank the buffers of rank 0."""
        if self.n > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def most(self, wish: int) -> int:
        """The largest of all ranks' numbers, on every rank."""
        if self.n == 1:
            return wish
        wishes = torch.tensor(wish)
        distributed.all_reduce(wishes, distributed.ReduceOp.MAX, group=self.host)
        return int(wishes)

    def hear(self, text: str | None) -> str | None:
        """What the first of the ranks that have something to say says, on every rank."""
        if self.n == 1:
            return text
        return next((f"{t} (rank {k})" for k, t in enumerate(self.each(text)) if t), None)

    def each(self, value: Any) -> list[Any]:
        """All ranks' values, on every rank."""
        values = [value] * self.n
        if self.n > 1:
            distributed.all_gather_object(values, value, group=self.host)
        return values

    def tell(self, text: str) -> str:
        """Rank 0's text, on every rank."""
        if self.n == 1:
            return text
        told = [text]
        distributed.broadcast_object_list(told, 0, group=self.host)
        return told[0]

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """All ranks leave the block together: what one does in it may take as long as it takes.

        Each shows meanwhile, from a thread, that it is there; one that is gone or silent ends the wait. An error in the
        block ends all ranks, each with the reason.

        Raises:
            LostRank: another rank has ended, with an error of its own or without a word.
        """
        if self.n == 1:
            yield
            return
        pulse = _Pulse(self)
        pulse.start()
        try:
            yield
        except BaseException as error:
            pulse.end(str(error) or type(error).__name__)
            pulse.join(_BEAT_SECONDS + 1)  # long enough to say it; the ranks may be out of reach
            raise
        pulse.end("")
        pulse.join()
        pulse.check()

    def agree(self, facts: Mapping[str, Any]) -> None:
        """See whether all ranks have the same facts, JSON types of any depth.

        Raises:
            ValueError: one has others; on every rank, with a sentence that names it and what differs.
        """
        known = self.each((platform.node(), _flat(facts)))
        first_host, first = known[0]
        for rank, (host, other) in enumerate(known):
            differs = [name for name in {**first, **other} if first.get(name) != other.get(name)]
            if differs:
                its, ours = (str(of.get(differs[0]))[:64] for of in (other, first))
                more = f", and {len(differs) - 1} more" if len(differs) > 1 else ""
                raise ValueError(
                    f"rank {rank} on {host} differs from rank 0 on {first_host}: its {differs[0]} is {its}, and not {ours}"
                    f"{more}; start all ranks with the same command, code and data"
                )


class _Pulse(threading.Thread):
    """Beats once a second until all ranks have ended their block, or one of them has failed or is lost."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(daemon=True)
        self.ranks = ranks
        self.ended = threading.Event()
        self.said: str | None = None  # None in the block, then "" or what went wrong there
        self.heard: list[str | None] = [None] * ranks.n
        self.error: RuntimeError | None = None

    def end(self, said: str) -> None:
        self.said = said
        self.ended.set()

    def run(self) -> None:
        try:
            while None in self.heard and not any(self.heard):
                self.ended.wait(_BEAT_SECONDS)
                distributed.all_gather_object(self.heard, self.said, group=self.ranks.pulse)
        except RuntimeError as error:
            self.error = error

    def check(self) -> None:
        if self.error:
            raise self.error
        for rank, said in enumerate(self.heard):
            if said:
                raise LostRank(f"rank {self.ranks.rank} of {self.ranks.n} stops, since rank {rank} has ended: {said}")


def _flat(facts: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Dotted name -> value."""
    found: dict[str, Any] = {}
    for name, value in facts.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found


def launched() -> bool:
    """Whether this process is one of several started by torchrun."""
    return _told("WORLD_SIZE", 1, 1) > 1


def restarted() -> bool:
    """Whether torchrun has started the processes again after a failure."""
    return _told("TORCHELASTIC_RESTART_COUNT", 0) > 0


def of_launcher() -> Ranks:
    """Rank and number of processes as torchrun tells, without connecting them.

    Raises:
        ValueError: what the environment tells is no number, is not all there, or does not go together.
    """
    if not launched():
        return Ranks()
    n = _told("WORLD_SIZE")
    return Ranks(_told("RANK", most=n - 1), n, _told("LOCAL_RANK", most=n - 1))


def _told(name: str, default: int | None = None, least: int = 0, most: int = _MOST_RANKS) -> int:
    """A number that the launcher has left in the environment."""
    text = os.environ.get(name, "" if default is None else str(default))
    if not (re.fullmatch("[0-9]{1,9}", text) and least <= int(text) <= most):
        raise ValueError(
            f"the environment has WORLD_SIZE={os.environ.get('WORLD_SIZE', '')} and {name}={text}: "
            "start several processes by torchrun, which sets them, or unset WORLD_SIZE for one"
        )
    return int(text)


@contextmanager
def joined(gpu: bool, slow_start: bool) -> Iterator[Ranks]:
    """Connect the processes that torchrun has started: NCCL where each has a GPU, gloo otherwise.

    Args:
        gpu: whether the network is on a GPU.
        slow_start: whether a step may take minutes, as the one that compiles; else a rank that does not answer for
            20 seconds is taken for lost.

    Raises:
        ValueError: there are more processes on this machine than GPUs.
        LostRank: another process has ended, or does not answer.
    """
    ranks = of_launcher()
    if ranks.n == 1:
        yield ranks
        return
    if gpu:
        here = torch.cuda.device_count()
        if ranks.local >= here:
            raise ValueError(
                f"torchrun starts a process {ranks.local} on this machine, which has {here} "
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
    """Another process of the run has ended, or does not answer."""


def _is_lost(error: RuntimeError) -> bool:
    """Gloo has no error class of its own."""
    words = ("gloo", "pair closure", "Connection closed", "Connection reset", "Broken pipe", "imed out", "NCCL")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in words)
