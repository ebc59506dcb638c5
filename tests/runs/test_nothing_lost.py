"""Faults injected for real: killed processes, full disks, broken and hostile files, numbers that explode."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spikerate import LIF, SelfDistillation
from spikerate.cli.main import main
from spikerate.data import Data, DataSet, load
from spikerate.data.cache import Cached, cached
from spikerate.data.download import Source, fetch, unpack
from spikerate.measure.health import NotFinite
from spikerate.models import short_path
from spikerate.runs.config import Model, Run
from spikerate.runs.optim import SGD
from spikerate.runs.record import RunFolder, SaveError
from spikerate.runs.state import State
from spikerate.runs.train import Trainer, build_network
from spikerate.system.files import pack_tensors, read_tensors, write_whole
from spikerate.system.interrupt import Ended, Interrupt, Interrupted, ended_by_signals
from spikerate.system.progress import untracked
from support import ROOT
from support.processes import Processes, wait_for
from support.runs import ARGUMENTS, Silent, assert_same, contents, stopped_at_every_step, until_finished

TINY = Run(model=Model(width=2), epochs=2, batch=200, T=2, loss=SelfDistillation())


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load(Data("digits"), 1)


# stopped at any moment --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    assert processes.run(*ARGUMENTS, "--out", "run", cwd=folder).returncode == 0
    return folder / "run"


def test_thirty_sigkills_change_nothing(processes: Processes, unbroken: Path, tmp_path: Path) -> None:
    statuses = until_finished(processes, tmp_path / "killed", signal.SIGKILL, 30)
    assert statuses.count(-signal.SIGKILL) >= 20
    assert statuses[-1] == 0
    assert_same(unbroken, tmp_path / "killed")


def test_six_sigterms_change_nothing(processes: Processes, unbroken: Path, tmp_path: Path) -> None:
    statuses = until_finished(processes, tmp_path / "stopped", signal.SIGTERM, 6)
    # One that comes before the run has begun, or after it has ended, finds Python's own handler.
    assert set(statuses) <= {0, 143, -signal.SIGTERM}
    assert statuses.count(143) >= 1
    assert statuses[-1] == 0
    assert_same(unbroken, tmp_path / "stopped")


@pytest.mark.parametrize(("kill", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGQUIT, 143)])
def test_a_stopped_run_says_how_to_go_on(processes: Processes, tmp_path: Path, kill: signal.Signals, status: int) -> None:
    begun = functools.partial(wait_for, tmp_path / "a run" / "metrics.jsonl")
    done = processes.run(*ARGUMENTS, "--epochs", "2000", "--out", "a run", cwd=tmp_path, kill=kill, when=begun)
    assert done.returncode == status
    assert f"stopped ({kill.name}), and saved; continue by: spikerate train --resume 'a run'" in done.stdout
    assert done.stderr == ""
    read_tensors(tmp_path / "a run" / "last.safetensors")


SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU, signal.SIGUSR1]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda s: s.name)
def test_each_signal_asks_a_run_to_stop_and_ends_everything_else(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with ended_by_signals():
        with Interrupt() as stop:
            os.kill(os.getpid(), number)
        with pytest.raises(Ended, match=number.name):
            os.kill(os.getpid(), number)
    assert stop.signal == number and Interrupted(stop.signal).status == 143
    assert signal.getsignal(number) is before


def test_a_run_under_nohup_stays_when_the_terminal_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals(), Interrupt() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.asked and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_cache_that_a_signal_ends_leaves_nothing_and_one_that_was_killed_is_removed_after_a_day(tmp_path: Path) -> None:
    def rows(asked: bool) -> Iterator[torch.Tensor | str]:
        yield torch.zeros(2)
        if asked:
            os.kill(os.getpid(), signal.SIGTERM)
        yield torch.ones(2)

    def make(asked: bool) -> Cached:
        return cached(tmp_path, "set", {}, (2,), np.float32, functools.partial(rows, asked), False, untracked)

    with pytest.raises(Ended), ended_by_signals():
        make(asked=True)
    assert list(tmp_path.iterdir()) == []
    (whole,) = (make(asked=False).rows, *tmp_path.iterdir())[1:]
    shutil.rmtree(whole)
    old, young = (tmp_path / f".{whole.name}-{name}" for name in ("old", "young"))
    for half in (old, young):
        half.mkdir()
        (half / "rows").write_bytes(b"half")
    for file in (old / "rows", old):
        os.utime(file, (0, time.time() - 90_000))
    assert make(asked=False).rows.tolist() == [[0, 0], [1, 1]]
    assert {place.name for place in tmp_path.iterdir()} == {whole.name, young.name}


def test_a_second_interrupt_stops_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_stopped_in_the_middle_of_an_epoch(digits: DataSet, tmp_path: Path) -> None:
    """Every step of a run is a place to stop."""
    whole = Trainer(TINY, digits, RunFolder.create(tmp_path / "whole", TINY, {}), Silent()).train()
    parts, stops = stopped_at_every_step(TINY, digits, RunFolder.create(tmp_path / "parts", TINY, {}))
    assert stops == 11
    for a, b in zip(whole.network.state_dict().values(), parts.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [r["loss"] for r in whole.rows] == [r["loss"] for r in parts.rows]


def test_a_finished_run_is_resumed_to_its_result(spikerate: Callable[..., Any], tmp_path: Path) -> None:
    assert spikerate(*ARGUMENTS, "--epochs", "1", "--out", "run").returncode == 0
    before = contents(tmp_path / "run")
    done = spikerate("train", "--resume", "run")
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
    assert contents(tmp_path / "run")[1:] == before[1:]


# no place to write ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB: room for a run's card, and for one checkpoint but not two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True)
    if done.returncode:
        pytest.skip("no right to mount a file system here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk(small_disk: Path, spikerate: Callable[..., Any], unbroken: Path, tmp_path: Path) -> None:
    run = small_disk / "run"
    done = spikerate(*ARGUMENTS, "--out", str(run))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr
    found = re.search(r"the state of the run is saved in (\S+): make room, mv (\S+) (\S+), and continue by", done.stderr)
    assert found, done.stderr
    kept, rescued = (read_tensors(file)[1]["epoch"] for file in (run / "last.safetensors", Path(found[1])))
    assert rescued == kept + 1
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    Path(found[2]).rename(tmp_path / "moved")
    subprocess.run(["mv", tmp_path / "moved", run / "last.safetensors"], check=True)
    assert spikerate("train", "--resume", str(run)).returncode == 0
    assert contents(run)[1] == contents(unbroken)[1]


def test_a_read_only_disk(small_disk: Path, spikerate: Callable[..., Any]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = spikerate(*ARGUMENTS, "--out", str(small_disk / "run"))
    assert done.returncode == 2
    assert done.stderr == (
        f"spikerate: the run folder {small_disk / 'run'} can't be written: Read-only file system; choose another by --out\n"
    )


def test_no_place_at_all(tmp_path: Path) -> None:
    """Files may have 100 kB, anywhere: the checkpoint before stays."""
    command = [sys.executable, "-m", "spikerate", *ARGUMENTS, "--out", "run"]
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100_000, 100_000))
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert "the checkpoint before is whole" in done.stderr
    assert "Traceback" not in done.stderr
    read_tensors(tmp_path / "run" / "last.safetensors")
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_vanished_folder(digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    run = tmp_path / "run"

    class Thief(Silent):
        def step(self, step: int, terms: Any) -> None:
            if step == 3:
                run.rename(tmp_path / "elsewhere")

    with pytest.raises(SaveError, match=r"No such file or directory.*the state of the run is saved in (\S+):"):
        Trainer(TINY, digits, RunFolder.create(run, TINY, {}), Thief()).train()
    (rescued,) = tmp_path.glob("spikerate-*/last.safetensors")
    assert read_tensors(rescued)[1]["epoch"] == 1
    read_tensors(tmp_path / "elsewhere" / "last.safetensors")


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(file, b"old")
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "nowhere" / "file", b"new")
    assert file.read_bytes() == b"old"
    write_whole(file, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# numerical trouble ------------------------------------------------------------------------------------------------------


def test_an_exploding_run_stops_with_the_step_and_the_layer(spikerate: Callable[..., Any], tmp_path: Path) -> None:
    done = spikerate(*ARGUMENTS, "--optim.lr", "1e12", "--loss.alpha", "1e12", "--out", "run")
    assert done.returncode == 1
    assert re.match(
        r"spikerate: epoch 1 step \d+: the loss is not finite \(terms: .*loss.*\); it appears first in the output of \S+ \(",
        done.stderr,
    ), done.stderr
    assert done.stderr.count("\n") == 1
    (before,) = (tmp_path / "run").glob("before-*.safetensors")
    tensors, _ = read_tensors(before)
    assert all(value.isfinite().all() for name, value in tensors.items() if name.startswith("network."))
    read_tensors(tmp_path / "run" / "last.safetensors")


def trainer(digits: DataSet, path: Path, spoil: Callable[[nn.Module], None], monkeypatch: pytest.MonkeyPatch) -> Trainer:
    def build(run: Run, num_classes: int, shape: tuple[int, int, int], device: torch.device) -> nn.Module:
        network = build_network(run, num_classes, shape, device)
        spoil(network)
        return network

    monkeypatch.setattr("spikerate.runs.train.build_network", build)
    return Trainer(TINY, digits, RunFolder.create(path, TINY, {}), Silent())


def test_the_layer_is_named(digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(network: nn.Module) -> None:
        network.get_parameter("branches.stage2.0.op.0.weight").data[0] = torch.inf

    with pytest.raises(NotFinite, match=r"epoch 1 step 1: .*in the output of branches.stage2.0.op.0 \(Conv2d\)"):
        trainer(digits, tmp_path / "run", spoil, monkeypatch).train()
    assert (tmp_path / "run" / "before-epoch-1-step-1.safetensors").is_file()


def test_the_gradient_is_named(digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(network: nn.Module) -> None:
        network.get_parameter("body.head.2.weight").register_hook(lambda grad: grad * torch.nan)

    with pytest.raises(NotFinite, match=r"a gradient is not finite; it appears first in the gradient of body.head.2.weight"):
        trainer(digits, tmp_path / "run", spoil, monkeypatch).train()


def test_steps_that_are_finite_when_done_again_are_kept(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that comes once: the steps since the checkpoint are done again, and the run is as without it."""
    seen: list[None] = []

    def spoil(network: nn.Module) -> None:
        def once(grad: torch.Tensor) -> torch.Tensor:
            seen.append(None)
            return grad * torch.nan if len(seen) == 8 else grad

        network.get_parameter("body.head.2.weight").register_hook(once)

    expected = Trainer(TINY, digits, RunFolder.create(tmp_path / "whole", TINY, {}), Silent()).train()
    found = trainer(digits, tmp_path / "run", spoil, monkeypatch).train()
    assert len(seen) > TINY.epochs * (len(digits.train) // TINY.batch)
    for name, value in expected.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], value)


def test_silent_and_saturated_layers_are_named_once(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, saturated = "body.stages.stage1.0.activation1", "body.stages.stage3.1.activation2"
    neurons: dict[str, LIF] = {}

    def spoil(network: nn.Module) -> None:
        for layer, threshold in ((silent, 1e6), (saturated, 1e-30)):
            neuron = network.get_submodule(layer)
            assert isinstance(neuron, LIF)
            neuron.threshold, neurons[layer] = threshold, neuron
        network.get_parameter("body.stages.stage3.1.bn2.bias").data += 1e3

    class Mending(Silent):
        def epoch(self, row: dict[str, Any]) -> None:
            neurons[silent].threshold = 1e-3

    watch = Mending()
    replace(trainer(digits, tmp_path / "run", spoil, monkeypatch), watch=watch).train()
    one, other = short_path(silent), short_path(saturated)
    assert [line.partition(": it")[0] for line in watch.lines if one in line or other in line] == [
        f"warning: layer {one} never fires on 128 images",
        f"warning: layer {other} fires at every step on 128 images",
        f"layer {one} can learn again",
    ]


# files from strangers ---------------------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-100] ^= 1
    file.write_bytes(raw)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def foreign(file: Path) -> None:
    tensors, facts = read_tensors(file)
    file.write_bytes(pack_tensors(tensors, facts | {"moon": "full"}))


def forged(file: Path) -> None:
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])


def weights_only(file: Path) -> None:
    facts = read_tensors(file)[1]
    file.write_bytes(pack_tensors({"network.x": torch.zeros(1)}, facts))


def malicious(file: Path) -> None:
    torch.save({"x": Bomb(file.with_name("boom"))}, file)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, "is truncated, or no file of spikerate"),
        (flip, "is damaged: its checksum is wrong"),
        (foreign, "is of another version of spikerate"),
        (forged, "is truncated, or no file of spikerate"),
        (weights_only, "is of another network than run.json says"),
        (malicious, "is truncated, or no file of spikerate"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_a_broken_checkpoint_is_a_sentence(digits: DataSet, tmp_path: Path, spoil: Any, words: str) -> None:
    folder = RunFolder.create(tmp_path / "run", TINY, {"data": {"sha256": digits.checksums}})
    network = build_network(TINY, 10, (1, 8, 8), torch.device("cpu"))
    folder.save(State(network, TINY.optim.build(network)))
    spoil(tmp_path / "run" / "last.safetensors")
    before = {p: p.read_bytes() for p in (tmp_path / "run").glob("*.safetensors")}
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    assert words in told.getvalue()
    assert told.getvalue().count("\n") == 1, told.getvalue()
    assert {p: p.read_bytes() for p in (tmp_path / "run").glob("*.safetensors")} == before
    assert not (tmp_path / "run" / "boom").exists()


def archive(path: Path, *members: tuple[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("set/a", b"x"), ("../evil", b"x")], "leaves its folder"),
        ([("set/../../evil", b"x")], "leaves its folder"),
        ([("/tmp/evil-spikerate", b"x")], "leaves its folder"),
        ([("set/a", link("set/a", "/etc/passwd"))], "a link or a device"),
        ([("other/a", b"x")], "has no folder set"),
    ],
)
def test_a_hostile_archive_writes_nothing(tmp_path: Path, members: Any, words: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    file = archive(tmp_path / "set.tar.gz", *members)
    with pytest.raises(ValueError, match=words):
        unpack(file, inner / "set")
    assert list(inner.iterdir()) == []
    assert not (tmp_path / "evil").exists()
    assert not Path("/tmp/evil-spikerate").exists()


def test_an_archive_that_promises_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spikerate.data.download._BYTES", 1000)
    file = archive(tmp_path / "set.tar.gz", ("set/zeros", bytes(5000)))
    with pytest.raises(ValueError, match="would unpack to more than"):
        unpack(file, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_truncated_archive_leaves_no_half_of_a_set(tmp_path: Path) -> None:
    file = archive(tmp_path / "set.tar.gz", ("set/a", os.urandom(50_000)), ("set/b", os.urandom(50_000)))
    file.write_bytes(file.read_bytes()[:60_000])
    with pytest.raises(ValueError, match="can't be unpacked"):
        unpack(file, tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["set.tar.gz"]


class Site(BaseHTTPRequestHandler):
    """Serves one file, breaks off the first transfers, and knows ranges or not."""

    content: bytes
    breaks: int
    ranges: bool
    asked: list[str]

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        type(self).asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0) if self.ranges else 0
        body = self.content[start:]
        self.send_response(206 if asked and self.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if type(self).breaks:
            type(self).breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[type[Site], Source]]:
    file = archive(tmp_path / "origin.tar.gz", ("set/a", os.urandom(100_000)), ("set/b", b"whole"))

    class Own(Site):
        content, breaks, ranges, asked = file.read_bytes(), 1, True, []

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/set.tar.gz"
    yield Own, Source({url: hashlib.sha256(Own.content).hexdigest()}, "set")
    server.shutdown()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_goes_on(site: tuple[type[Site], Source], tmp_path: Path, ranges: bool) -> None:
    handler, source = site
    handler.ranges = ranges
    to = tmp_path / "data"
    with pytest.raises(ValueError, match=r"can't be fetched .*bytes are kept, give the command again to go on"):
        fetch(source, to)
    assert [p.name for p in to.iterdir()] == ["set.tar.gz.part"]
    kept = (to / "set.tar.gz.part").stat().st_size
    assert kept > 10_000
    assert fetch(source, to) == to / "set"
    assert handler.asked[1] == f"bytes={kept}-"
    assert (to / "set" / "b").read_bytes() == b"whole"
    assert [p.name for p in to.iterdir()] == ["set"]


def test_a_changed_download_is_refused_before_it_is_opened(site: tuple[type[Site], Source], tmp_path: Path) -> None:
    handler, source = site
    handler.breaks = 0
    with pytest.raises(ValueError, match="gave a file of sha256"):
        fetch(replace(source, files=dict.fromkeys(source.files, "0" * 64)), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
    (tmp_path / "data" / "set").mkdir()
    with pytest.raises(ValueError, match="already exists"):
        fetch(source, tmp_path / "data")


def test_loose_files_come_as_a_whole_folder(site: tuple[type[Site], Source], tmp_path: Path) -> None:
    handler, source = site
    handler.breaks = 0
    (url,) = source.files
    loose = Source({url: source.files[url], url.replace("set.tar.gz", "other.gz"): source.files[url]}, "two", archive=False)
    folder = fetch(loose, tmp_path / "data")
    assert sorted(p.name for p in folder.iterdir()) == ["other.gz", "set.tar.gz"]
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["two"]
    spoilt = replace(loose, folder="three", files={url: source.files[url], url + "?": "0" * 64})
    with pytest.raises(ValueError, match="gave a file of sha256"):
        fetch(spoilt, tmp_path / "data")
    assert not (tmp_path / "data" / "three").exists()


# again ------------------------------------------------------------------------------------------------------------------


def test_reproduce(spikerate: Callable[..., Any], tmp_path: Path) -> None:
    assert spikerate(*ARGUMENTS, "--epochs", "1", "--out", "run").returncode == 0
    done = spikerate("reproduce", "run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every metric of every epoch agrees" in done.stdout
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["environment"]["packages"]["torch"] = "1.0"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").write_text(json.dumps(result | {"test_accuracy": 0.5}))
    done = spikerate("reproduce", "run", "--out", "third")
    assert done.returncode == 1
    assert "test_accuracy" in done.stdout
    assert "environment.packages.torch" in done.stdout and "repeats" not in done.stdout
    third = json.loads((tmp_path / "third" / "run.json").read_text())
    assert third["repeats"] == record["command"] and third["command"] == "spikerate reproduce run --out third"


def test_seeds(spikerate: Callable[..., Any], tmp_path: Path) -> None:
    command = [*ARGUMENTS, "--epochs", "1", "--seeds", "3", "--out", "all"]
    done = spikerate(*command)
    assert done.returncode == 0, done.stderr
    accuracies = [RunFolder(tmp_path / "all" / f"seed{k}").result()["test_accuracy"] for k in range(3)]
    assert f"{np.mean(accuracies):.2%}" in done.stdout
    assert f"{np.std(accuracies, ddof=1):.2%}" in done.stdout
    (tmp_path / "all" / "seed1" / "result.json").unlink()
    again = spikerate(*command)
    assert again.returncode == 0
    assert "seed 1" in again.stdout and "seed 2\n" not in again.stdout
    assert done.stdout.split("3 seeds")[1] == again.stdout.split("3 seeds")[1]
    refused = spikerate(*command, "--T", "1")
    assert refused.returncode == 2
    assert "contains a run with other settings" in refused.stderr


def test_the_record_says_what_a_repetition_needs(spikerate: Callable[..., Any], tmp_path: Path) -> None:
    assert spikerate(*ARGUMENTS, "--epochs", "1", "--out", "run").returncode == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["command"].startswith("spikerate train digits-esd --width 2")
    assert re.fullmatch("[0-9a-f]{16}", record["fingerprint"])
    assert record["data"]["sizes"] == {"train": 1257, "validation": 180, "test": 360}
    assert record["data"]["licence"].startswith("CC BY 4.0")
    assert record["environment"]["packages"]["torch"] == torch.__version__
    assert record["finished"]["seconds"] > 0
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if commit.returncode == 0:
        assert record["source"]["commit"] == commit.stdout.strip()


@pytest.mark.parametrize("changes", [{"data": Data(store="host")}, {"deterministic": True}], ids=str)
def test_what_changes_nothing(digits: DataSet, tmp_path: Path, changes: dict[str, Any]) -> None:
    """Where the images are kept, and on a CPU the deterministic mode."""
    runs = [TINY, replace(TINY, **changes)]
    states = [
        Trainer(run, digits, RunFolder.create(tmp_path / str(k), run, {}), Silent()).train() for k, run in enumerate(runs)
    ]
    assert [row["loss"] for row in states[0].rows] == [row["loss"] for row in states[1].rows]
    assert not torch.are_deterministic_algorithms_enabled()


def test_parts_of_a_batch_add_up(digits: DataSet, tmp_path: Path) -> None:
    """Batch norm sees one part at a time, so the loss is near, and not the same."""
    runs = [replace(TINY, epochs=1, accumulate=k) for k in (1, 3)]
    states = [
        Trainer(run, digits, RunFolder.create(tmp_path / str(k), run, {}), Silent()).train() for k, run in enumerate(runs)
    ]
    assert states[0].rows[0]["ce"] == pytest.approx(states[1].rows[0]["ce"], rel=0.05)


def test_optimizer_state_comes_back_in_its_memory_format(digits: DataSet, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", TINY, {})
    state = Trainer(replace(TINY, epochs=1), digits, folder, Silent()).train()
    network = build_network(TINY, 10, (1, 8, 8), torch.device("cpu"))
    again = State(network, SGD().build(network))
    folder.restore(again)
    for a, b in zip(state.network.parameters(), network.parameters(), strict=True):
        one, other = state.optimizers[0].state[a]["momentum_buffer"], again.optimizers[0].state[b]["momentum_buffer"]
        assert torch.equal(one, other)
        assert other.stride() == b.stride()
