"""Piece 3: the command line on a device, end to end, and runs that are stopped and resumed to the same bits."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from figures import Figures

SPIKERATE = [sys.executable, "-W", "ignore", "-m", "spikerate"]


class Here:
    """Runs the command line in a folder on a device.

    Args:
        small: the arguments that make a training small.
    """

    def __init__(self, folder: Path, device: str, small: list[str]) -> None:
        self.folder, self.device, self.small = folder, device, small

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """What it prints; anything but the wanted exit status is an error."""
        done = subprocess.run(
            [*SPIKERATE, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=200, errors="replace"
        )
        if done.returncode != status:
            words = "\n".join((done.stdout[-300:], done.stderr[-900:]))
            raise RuntimeError(f"{' '.join(arguments)}: status {done.returncode}: ...{words}"[-1200:])
        return done.stdout

    def train(self, preset: str, out: str, *more: str) -> dict[str, Any]:
        """A training, and its result."""
        self("train", preset, "--out", out, "--device", self.device, *self.small, *more)
        rows = [json.loads(line) for line in (self.folder / out / "metrics.jsonl").read_text().splitlines()]
        result = json.loads((self.folder / out / "result.json").read_text())
        return {"test_accuracy": result["test_accuracy"], "seconds": [row["seconds"] for row in rows]}


def bits(folder: Path) -> dict[str, Any]:
    """All that a run leaves but times: the tensors' bytes and the metrics."""
    from safetensors.numpy import load_file

    found: dict[str, Any] = {}
    for name in ("last", "best"):
        found |= {f"{name}.{k}": v.tobytes() for k, v in load_file(folder / f"{name}.safetensors").items()}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return found | {"rows": [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]}


def same_bits(one: Path, other: Path) -> int:
    """How many tensors and tables are the same; an error if one is not."""
    a, b = bits(one), bits(other)
    different = [name for name in a if a[name] != b.get(name)]
    if different or a.keys() != b.keys():
        raise AssertionError(f"{len(different)} of {len(a)} differ: {different[:6]}")
    return len(a)


def end_to_end(run: Here) -> dict[str, Any]:
    """Train digits by ESD, and do with the run all that can be done."""
    found = run.train("digits-esd", "esd", "--epochs", "3")
    run("eval", "esd", "--device", run.device)
    run("eval", "esd", "--device", run.device, "--fold", "--T", "2")
    run("report", "esd")
    for suffix in (".safetensors", ".pt2", ".onnx"):
        run("export", "esd", f"network{suffix}")
    run("gradient", "esd", "--device", run.device, "--samples", "8", "--directions", "4")
    run("predict", "esd", picture(run.folder), "--device", run.device)
    return found


def picture(folder: Path) -> str:
    """A grey image in a file."""
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / "picture.png")
    return "picture.png"


def stopped_and_resumed(run: Here, name: str, *more: str) -> dict[str, Any]:
    """A deterministic run that is stopped twice in its middle and goes on has the bits of one that never stopped."""
    settings = ["digits-esd", "--deterministic", "--epochs", "4", "--save-minutes", "0", *more]
    whole = run.train(*[settings[0], f"{name}-whole", *settings[1:]])
    broken = run.folder / f"{name}-broken"
    command = ["train", *settings, "--out", str(broken), "--device", run.device, *run.small]
    stops = 0
    for attempt in range(3):
        process = subprocess.Popen(
            [*SPIKERATE, *command], cwd=run.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        state, since = broken / "last.safetensors", time.time()
        while attempt < 2 and process.poll() is None:
            if state.exists() and state.stat().st_mtime > since + 0.01:
                time.sleep(0.7)
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.05)
        _, said = process.communicate(timeout=200)
        if process.returncode not in (0, 143):
            raise RuntimeError(f"status {process.returncode}: {said[-900:]}")
        stops += process.returncode == 143
        if process.returncode == 0:
            break
        command = ["train", "--resume", str(broken)]
    return {"stops": stops, "equal": same_bits(run.folder / f"{name}-whole", broken), **whole}


def twice(run: Here, preset: str, *more: str) -> dict[str, Any]:
    """Two deterministic runs of one seed have the same bits."""
    name = preset + "-" + "-".join(word.strip("-") for word in more if "/" not in word)
    one = run.train(preset, f"{name}-1", "--deterministic", *more)
    run.train(preset, f"{name}-2", "--deterministic", *more)
    return {"equal": same_bits(run.folder / f"{name}-1", run.folder / f"{name}-2"), **one}


def two_on_one_card(run: Here) -> str:
    """What somebody sees who starts two processes for one GPU: a sentence."""
    if run.device != "cuda":
        return "not on this device"
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "spikerate", "train", "digits-rate", "--epochs", "1", "--out", "two"],
        cwd=run.folder,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    sentences = [line for line in done.stderr.splitlines() if line.startswith("spikerate: ")]
    if not sentences:
        raise AssertionError(f"status {done.returncode} without a sentence: {done.stderr[-900:]}")
    return sentences[0]


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--data", type=Path, default=None, help="folder of CIFAR-10 in its official layout, when it is there"
    )
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    figures = Figures(args.out)
    run = Here(args.work.resolve(), args.device, ["--width", "4", "--subset", "200", "--batch", "32"] if args.small else [])
    fast = ["--precision", "bf16", *([] if args.small else ["--compile"])]

    def on_cifar(*more: str) -> dict[str, Any]:
        while not (args.data / "cifar-10-batches-py" / "batches.meta").is_file():
            time.sleep(0.5)
        return twice(run, "cifar10-esd", "--data", str(args.data), "--epochs", "1", "--subset", "640", *more)

    tasks: dict[str, Callable[[], Any]] = {
        "stopped and resumed, bf16, compiled": lambda: stopped_and_resumed(run, "fast", *fast),
        "stopped and resumed": lambda: stopped_and_resumed(run, "eager"),
        "end to end": lambda: end_to_end(run),
        **({} if args.data is None else {"AutoAugment twice": lambda: on_cifar("--width", "8")}),
        "two processes on one card": lambda: two_on_one_card(run),
        "search": lambda: run.train("digits-dspike-esd", "search", "--epochs", "2"),
        "events": lambda: run.train("digits-dvs-rate", "events", "--epochs", "1", "--data.cache", str(args.work / "cache")),
        "BPTT": lambda: run.train("digits-bptt", "bptt", "--epochs", "1"),
        "OTTT": lambda: run.train("digits-ottt", "ottt", "--epochs", "1"),
        "store on the host": lambda: run.train("digits-rate", "host", "--epochs", "1", "--data.store", "host"),
        "doctor": lambda: run("doctor")[-600:],
    }
    with ThreadPoolExecutor(2 if args.small else 6) as pool:
        list(pool.map(lambda task: figures.attempt(*task), tasks.items()))


if __name__ == "__main__":
    main()
