"""Everything that a lent GPU is wanted for, in pieces, in the order of their worth, within so many seconds.

    python benchmarks/gpu/run.py --out FOLDER [--seconds 430] [--pieces check bench train ...]

What only has to be right runs in the background, while the cells of the bench compile in parallel; what is timed runs
alone. Each piece writes its figures to FOLDER/PIECE.json as it goes; entries that are there are not done again. A piece
that fails or takes too long stops no other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import bench
from figures import Figures
from talk import Worker, here

ROOT = Path(__file__).resolve().parents[2]
BACKGROUND = ("check", "commands", "ranks", "tests")
PIECES = (*BACKGROUND, "bench", "sew", "loading", "train")
METHOD = [f"method/test_{name}.py" for name in ("rules", "signal", "neuron", "online", "losses")]
TESTS = [*METHOD, "models", "gradients/test_finite_difference.py"]
LIMITS = {"background": 150, "bench": 55, "warm": 75, "sew": 40, "loading": 20}
"""Seconds: for all that runs in the background, while the bench warms up; to time it; for the second warming up; ..."""
RECIPES: dict[str, tuple[float, dict[str, Any]]] = {
    "resnet18": (0.62, {"widths": [64]}),
    "wide": (0.38, {"widths": [128, 384, 512], "depth": 3}),
}
"""Name -> share of the time, and what `recipe.Recipe` does not have by itself."""


class Session:
    """What the pieces share: folders, the log, and the time that is left."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device: str = args.device
        self.small: bool = args.small
        self.out: Path = args.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.work: Path = args.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.end = time.monotonic() + args.seconds
        self.start = time.monotonic()
        self.log: TextIO = (self.out / "log.txt").open("a", buffering=1)
        self.pieces: list[str] = args.pieces
        self.cifar = args.cifar.resolve() if args.cifar and args.cifar.is_dir() else None
        self.data = self.work / "cifar"

    def say(self, line: str) -> None:
        stamped = f"[{time.monotonic() - self.start:6.1f} s] {line}"
        print(stamped, flush=True)
        print(stamped, file=self.log)

    def left(self, most: float = 1e9) -> float:
        """Seconds, at most so many; a processor gets more of them."""
        return max(0.0, min(6 * most if self.small else most, self.end - time.monotonic()))

    def figures(self, piece: str) -> Figures:
        return Figures(self.out / f"{piece}.json")

    def environment(self) -> dict[str, str]:
        paths = (str(ROOT / "src"), str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "2",
        }

    def script(self, piece: str) -> list[str]:
        """The command of a piece that is a process."""
        command = [*here(f"{piece}.py"), "--device", self.device, "--out", str(self.out / f"{piece}.json")]
        command += ["--small"] if self.small else []
        if piece == "commands":
            command += ["--work", str(self.work / "runs")]
        if piece in ("commands", "loading") and self.cifar:
            command += ["--data", str(self.data)]
        return command


def unpack(session: Session) -> subprocess.Popen[bytes] | None:
    """Begin to lay CIFAR-10 out as it is distributed."""
    if not session.cifar or (session.data / "cifar-10-batches-py" / "batches.meta").is_file():
        return None
    command = [sys.executable, str(session.cifar / "unpack.py"), str(session.data), "cifar10"]
    return subprocess.Popen(command, stdout=session.log, stderr=session.log)


def limited(session: Session, name: str, command: list[str], seconds: float, env: dict[str, str]) -> None:
    """Run a process to its end, or so many seconds."""
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=session.log, stderr=session.log, start_new_session=True)
    try:
        status: Any = process.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        status = f"ended after {seconds:.0f} s"
    session.say(f"{name}: {status}")


def test_suite(session: Session, seconds: float) -> None:
    """The test suite's core with all that it makes on the device."""
    files = [str(ROOT / "tests" / file) for file in (TESTS[2:4] if session.small else TESTS)]
    lines = session.out / "tests.json"
    env = session.environment() | {"PYTEST_PLUGINS": "on_device", "TEST_DEVICE": session.device, "TEST_LINES": str(lines)}
    n = "2" if session.small else "5"
    limited(session, "tests", [sys.executable, "-m", "pytest", "-q", "-n", n, "--tb=short", *files], seconds, env)
    outcomes = [json.loads(line) for line in lines.read_text().splitlines()] if lines.is_file() else []
    failed = [o for o in outcomes if o["outcome"] == "failed"]
    session.say(f"tests: {len(outcomes) - len(failed)} passed, {len(failed)} failed")


def background(session: Session, seconds: float) -> list[threading.Thread]:
    """Begin the pieces that only have to be right."""
    threads = []
    for piece in BACKGROUND:
        if piece not in session.pieces:
            continue
        if piece == "tests":
            thread = threading.Thread(target=test_suite, args=(session, seconds))
        else:
            parts = (session, piece, session.script(piece), seconds, session.environment())
            thread = threading.Thread(target=limited, args=parts)
        thread.start()
        threads.append(thread)
    return threads


def recipes(session: Session) -> list[tuple[str, float, Worker, dict[str, Any]]]:
    """Begin the processes of the recipes; they wait until they are asked."""
    if "train" not in session.pieces or not session.cifar:
        return []
    common: dict[str, Any] = {"data": str(session.data), "device": session.device}
    if session.small:
        common |= {"subset": 200, "batch": 8, "compile": False}
    threads = {"TORCHINDUCTOR_COMPILE_THREADS": "4", "OMP_NUM_THREADS": "1" if session.small else "2"}
    made = []
    for name, (share, settings) in RECIPES.items():
        settings = settings | ({"widths": [8] * len(settings["widths"])} if session.small else {})
        worker = Worker(name, here("recipe.py"), session.log, threads)
        made.append((name, share, worker, common | {"name": name, **settings}))
    return made


def train(session: Session, made: list[tuple[str, float, Worker, dict[str, Any]]]) -> None:
    """Each recipe for its share of the time that is left; the test images are asked once, by the best on validation ones."""
    figures = session.figures("train")
    seconds = session.left() - 12
    for name, share, worker, settings in made:
        found = worker.ask({"train": share * seconds}, share * seconds + 30)
        figures.keep(name, {"settings": settings, "died": worker.died} | found)
        session.say(f"train {name}: {worker.died or json.dumps({k: v for k, v in found.items() if k != 'curve'})}")
    alive = [(figures.found[name]["validation"]["plain"], name, worker) for name, _, worker, _ in made if not worker.died]
    if alive:
        _, name, worker = max(alive, key=lambda one: one[0])
        figures.keep("chosen", {"recipe": name} | worker.ask({"test": True}, 20))
        session.say(f"chosen by validation images: {json.dumps(figures.found['chosen'])}")
    for _, _, worker, _ in made:
        worker.close()


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-figures")))
    parser.add_argument("--work", type=Path, default=Path("/tmp/spikerate-gpu"), help="folder for what is not kept")
    parser.add_argument("--cifar", type=Path, default=ROOT / ".gpu" / "data", help="of cifar10_jpeg.npz and unpack.py")
    parser.add_argument("--seconds", type=float, default=430, help="for all together")
    parser.add_argument("--pieces", nargs="+", choices=PIECES, default=list(PIECES))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="everything in small, to try it on a processor")
    session = Session(parser.parse_args())
    os.environ.update(session.environment())
    session.say(f"{', '.join(session.pieces)} on {session.device}, {bench.processors()} processors")
    unpacking = unpack(session)
    at_once = max(2, bench.processors() * 3 // 4)
    made: list[tuple[str, float, Worker, dict[str, Any]]] = []
    warm_recipes: list[Any] = []
    pool = ThreadPoolExecutor(len(RECIPES))

    def begin_recipes(seconds: float) -> None:
        if unpacking:
            unpacking.wait()
        made.extend(recipes(session))
        warm_recipes.extend(pool.submit(worker.ask, settings, seconds) for _, _, worker, settings in made)

    seconds = session.left(LIMITS["background"])
    threads = background(session, seconds)
    benches = (("bench", "resnet18", bench.resnet), ("sew", "sew_resnet18", bench.sew))
    pieces = [of for of in benches if of[0] in session.pieces]
    if not pieces:
        begin_recipes(session.left(LIMITS["background"]))
    for k, (name, network, cells) in enumerate(pieces):
        seconds = session.left(LIMITS["background" if k == 0 else "warm"])
        one = bench.Bench(session.figures("bench"), cells(session.device, session.small), session.log, at_once)
        try:
            one.begin(time.monotonic() + seconds)
            if k == len(pieces) - 1:
                begin_recipes(seconds)
            for thread in threads:
                thread.join()
            for task in warm_recipes:
                task.result()
            one.wait()
            session.say(f"{name}: warm")
            rounds, steps = (2, 2) if session.small else (5, 8) if name == "bench" else (4, 6)
            one.measure(rounds, steps, time.monotonic() + session.left(LIMITS[name]))
        except Exception as error:
            session.say(f"{name} failed: {type(error).__name__}: {error}")
        finally:
            one.close()
        for line in bench.table(session.figures("bench"), network):
            session.say(line)
    for thread in threads:
        thread.join()
    for (name, _, worker, _), task in zip(made, warm_recipes, strict=True):
        session.say(f"recipe {name}: {worker.died or task.result()}")
    if unpacking:
        unpacking.wait()
    if "loading" in session.pieces:
        limited(session, "loading", session.script("loading"), session.left(LIMITS["loading"]), session.environment())
    if made:
        train(session, made)
    summary(session)


def summary(session: Session) -> None:
    """What failed, last, since the end of the output is what is read first."""
    for piece in ("check", "commands", "ranks", "loading"):
        found = session.figures(piece).found
        failed = {name: entry for name, entry in found.items() if not entry.get("ok", True)}
        session.say(f"{piece}: {len(found) - len(failed)} ok, {len(failed)} failed")
        for name, entry in failed.items():
            session.say(f"  {name}: {entry['died'][:400]} ({entry.get('at')})")
        if piece == "loading":
            for name, entry in found.items():
                session.say(f"  {name}: {entry.get('value')}")
    lines = session.out / "tests.json"
    if lines.is_file():
        outcomes = [json.loads(line) for line in lines.read_text().splitlines()]
        for outcome in outcomes:
            if outcome["outcome"] == "failed":
                session.say(f"  {outcome['test'].rpartition('/')[2]}: {outcome['words'][:160]}")
    session.say("done")


if __name__ == "__main__":
    main()
