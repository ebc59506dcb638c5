"""Piece 2: what a training step costs by each method, as it comes, compiled and with CUDA graphs.

All cells are warmed up in parallel, a few at a time, since compilers wait for processors; then one works at a time.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TextIO

from figures import Figures
from talk import Worker, here


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is timed.

    Attributes:
        method: ann, rate, esd, bptt, snntorch, spikingjelly (on a GPU with the neurons that it has in Triton, their
            membranes in float32) or spikingjelly-plain (with those that it takes by itself under autocast).
        mode: eager, compiled, or graphs: compiled for CUDA graphs.
    """

    network: str
    method: str
    T: int
    mode: str
    side: int
    classes: int
    batch: int
    width: int = 64
    stem: str = "3x3"
    precision: str = "bf16"
    device: str = "cuda"

    def __str__(self) -> str:
        network = "" if self.network == "resnet18" else f"{self.network} "
        return f"{network}{self.method}{'' if self.method == 'ann' else f' T={self.T}'} {self.mode}"


def resnet(device: str, small: bool) -> list[Cell]:
    """ResNet-18 on images of 32 x 32, batch 128, T = 4 and 6; the most wanted first."""
    like = Cell("resnet18", "ann", 1, "eager", side=32, classes=10, batch=128, device=device)
    if small:
        return _small(dataclasses.replace(like, side=16, batch=8, width=8, precision="fp32"))
    return [
        *_cells(like, "eager", [("ann", 1), ("rate", 4), ("spikingjelly", 4), ("bptt", 4), ("esd", 4), ("snntorch", 4)]),
        *_cells(like, "compiled", [("ann", 1), ("rate", 4), ("spikingjelly", 4), ("bptt", 4), ("esd", 4)]),
        *_cells(like, "graphs", [("ann", 1), ("rate", 4), ("spikingjelly", 4), ("esd", 4)]),
        *_cells(like, "eager", [("rate", 6), ("spikingjelly", 6), ("bptt", 6), ("esd", 6)]),
        *_cells(like, "compiled", [("rate", 6), ("spikingjelly", 6), ("bptt", 6), ("snntorch", 4)]),
        *_cells(like, "graphs", [("rate", 6)]),
        *_cells(like, "eager", [("spikingjelly-plain", 4)]),
    ]


def sew(device: str, small: bool) -> list[Cell]:
    """SEW-ResNet-18 on images of 224 x 224, batch 64, T = 4."""
    like = Cell("sew_resnet18", "ann", 4, "eager", side=224, classes=1000, batch=64, stem="7x7", device=device)
    if small:
        return _small(dataclasses.replace(like, side=32, batch=8, width=8, precision="fp32"))[:2]
    return [
        *_cells(like, "eager", [("ann", 1), ("rate", 4), ("spikingjelly", 4), ("bptt", 4)]),
        *_cells(like, "compiled", [("ann", 1), ("rate", 4), ("spikingjelly", 4), ("bptt", 4), ("esd", 4)]),
        *_cells(like, "graphs", [("ann", 1), ("rate", 4)]),
        *_cells(like, "eager", [("spikingjelly-plain", 4)]),
    ]


def _small(like: Cell) -> list[Cell]:
    """Every method once, to try it on a processor."""
    eager = [("ann", 1), ("rate", 4), ("spikingjelly", 4), ("bptt", 4), ("esd", 4), ("snntorch", 4)]
    return [*_cells(like, "eager", eager), *_cells(like, "graphs", [("rate", 4)])]


def _cells(like: Cell, mode: str, methods: list[tuple[str, int]]) -> list[Cell]:
    return [dataclasses.replace(like, method=method, T=T, mode=mode) for method, T in methods]


class Bench:
    """The cells of one setting, in their processes.

    Args:
        end: on the clock of `time.monotonic`, when a cell that is still warming up is given up.
    """

    def __init__(self, figures: Figures, cells: list[Cell], log: TextIO, at_once: int) -> None:
        self.figures = figures
        self.ready: list[tuple[str, Cell, Worker]] = []
        self._all: list[Worker] = []
        self._wanted = [cell for cell in cells if "median_ms" not in figures.found.get(str(cell), {})]
        self._log, self._pool, self._tasks = log, ThreadPoolExecutor(at_once), []

    def begin(self, end: float) -> None:
        """Warm up in the background."""
        self._tasks = [self._pool.submit(self._warm, cell, end) for cell in self._wanted]

    def _warm(self, cell: Cell, end: float) -> tuple[str, Cell, Worker, dict[str, object]]:
        threads = {"TORCHINDUCTOR_COMPILE_THREADS": "2", "OMP_NUM_THREADS": "1"}
        name, left = str(cell), end - time.monotonic()
        worker = Worker(name, here("cell.py"), self._log, threads)
        self._all.append(worker)
        if left < 5:
            worker.close()
            worker.died = "there was no time to warm it up"
            return name, cell, worker, {}
        return name, cell, worker, worker.ask(dataclasses.asdict(cell), left)

    def wait(self) -> None:
        """Until all are warm, or given up."""
        for task in self._tasks:
            task.result()

    def measure(self, rounds: int, steps: int, end: float) -> None:
        """Time the cells that are warm, in turns, until `end`; each keeps what it has after every round."""
        warm = [task.result() for task in self._tasks]
        entries: dict[str, dict[str, object]] = {}
        for name, cell, worker, answer in warm:
            entries[name] = dataclasses.asdict(cell) | answer | {"died": worker.died}
            self.figures.keep(name, entries[name])
        for turn in range(rounds):
            for name, cell, worker, _ in warm:
                if time.monotonic() > end:
                    return
                timed = worker.ask(steps, max(5.0, end + 5 - time.monotonic()))
                if not timed:
                    self.figures.keep(name, entries[name] | {"died": worker.died})
                    continue
                before = entries[name].get("turns_ms", [])
                assert isinstance(before, list)
                turns = [*before, timed.pop("median_ms")]
                timed.pop("ms")
                median = statistics.median(turns)
                entries[name] |= timed | {
                    "turns_ms": turns,
                    "median_ms": median,
                    "images_per_second": round(1000 * cell.batch / median, 1),
                }
                self.figures.keep(name, entries[name])
            print(f"round {turn + 1} of {rounds}", flush=True)

    def close(self) -> None:
        """End all cells."""
        for worker in self._all:
            worker.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def table(figures: Figures, network: str) -> list[str]:
    """The figures of a network in lines: step, in those of the ANN of the same mode, images a second, MiB."""
    found = {name: e for name, e in figures.found.items() if e["network"] == network}
    anns = {e["mode"]: e["median_ms"] for e in found.values() if e["method"] == "ann" and "median_ms" in e}
    lines = [f"{'cell':42} {'ms':>8} {'/ANN':>6} {'/floor':>6} {'img/s':>8} {'MiB':>7} {'first s':>8}"]
    for name, e in found.items():
        if "median_ms" not in e:
            lines.append(f"{name:42} died: {e.get('died', '')[:90]}")
            continue
        ratio = e["median_ms"] / anns.get(e["mode"], float("nan"))
        floor = ratio * 3 / (e["T"] + 2) if e["method"] != "ann" else ratio
        lines.append(
            f"{name:42} {e['median_ms']:8.2f} {ratio:6.2f} {floor:6.2f} {e['images_per_second']:8.0f} "
            f"{e['peak_mib']:7.0f} {e['first_s']:8.1f} {str(e.get('note', ''))[:60]}"
        )
    return lines


def processors() -> int:
    """How many there are for this process."""
    return len(os.sched_getaffinity(0))
