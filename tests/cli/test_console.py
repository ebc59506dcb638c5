"""What a training shows while it runs: to a pipe, to a terminal, to TensorBoard."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from spikerate.cli import tensorboard, views
from spikerate.cli.live import TrainingView, grouped
from spikerate.cli.main import main
from spikerate.runs.config import Rectified, Run
from spikerate.runs.presets import preset
from spikerate.runs.record import RunFolder
from spikerate.runs.rounds import Repetition
from spikerate.system.files import read_tensors, write_json
from support.processes import Processes, wait_for

TINY = ["train", "digits-esd", "--width", "2", "--subset", "60", "--batch", "20", "--T", "2", "--epochs", "3"]
STEPS = 3
"""Of one of its epochs."""
RUN = replace(preset("digits-esd").run, epochs=12)
LAYERS = [f"body.stages.stage{s}.{b}.activation{k}" for s in (1, 2, 3, 4) for b in (0, 1) for k in (1, 2)]


def row(epoch: int, **other: Any) -> dict[str, Any]:
    shares = {
        "accuracy": 0.5,
        "accuracy/exit1": 0.125,
        "accuracy/exit2": 0.25,
        "reliable": 0.75,
        "validation": 0.5 + epoch / 100,
    }
    rates = {"body.stem.2": 0.5, **{layer: k / 50 for k, layer in enumerate(LAYERS)}}
    row = {"epoch": epoch, "lr": 0.1, "loss": 4 / epoch, "ce": 3.0, "kl": 0.5, **shares}
    return row | {"firing_rate": 0.2, "firing_rates": rates, "seconds": 2.5} | other


def terminal(width: int = 80, height: int = 24, encoding: str = "utf-8", **other: Any) -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    size = {"width": width, "height": height}
    return Console(file=file, force_terminal=True, record=True, markup=False, soft_wrap=True, **size, **other)


def terms(**values: float) -> dict[str, Any]:
    return {name: torch.tensor(value) for name, value in values.items()}


def shown(console: Console, *rows: dict[str, Any], run: Run = RUN, title: str = "") -> list[str]:
    """The lines of the view after these epochs and a step of the next one."""
    view = TrainingView(console, run, STEPS, title)
    for known in rows:
        view.epoch(known)
    view.shown -= 1  # a second ago
    view.step(len(rows) * STEPS + 1, terms(loss=1.5, ce=1.25, kl=0.25, reliable=0.25, accuracy=0.75))
    console.print(view)
    return [line.rstrip() for line in console.export_text().splitlines()]


# a terminal -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [72, 80, 110, 120, 200])
def test_the_view_has_everything_side_by_side(width: int) -> None:
    lines = shown(terminal(width), row(1), row(2), title="round 2 of 3")
    assert lines[0].startswith("round 2 of 3, epoch 3/12 ") and lines[0].endswith(" left")
    assert " 19%" in lines[0], "7 of 36 steps"
    text = "\n".join(lines)
    assert re.search(r"step +epoch 2 ", lines[2]) and "firing rate" in lines[2]
    for words in (
        r"loss +1\.500 +2\.000 ",
        r"kl +0\.250 +0\.500 ",
        r"accuracy +75\.0% +50\.0% ",
        r"  exit 2 +25\.0% ",
        r"validation +52\.0% ",
        r"reliable +25\.0% +75\.0% ",
        r"stem\.2 +━+ +0\.500",
        r"stage4\.1\.activation2 +━+[╸╺]━+ +0\.300",
    ):
        assert re.search(words, text), words
    assert max(map(len, lines)) <= width and len(lines) <= 24
    assert ("▁█" in text) == ("all epochs" in text) == (width >= 110)


def test_a_narrow_terminal_has_one_below_the_other_and_no_more_lines_than_it_shows() -> None:
    lines = shown(terminal(44, 20), row(1))
    assert max(map(len, lines)) <= 44
    assert len(lines) <= 20
    assert re.search(
        r"\n  exit 2 +25\.0%\n(.+\n)+firing rate\n(.+\n)*stage4 \(4\) +━+[╸╺]━+ +0\.270\n", "\n".join(lines) + "\n"
    )
    assert shown(terminal(44, 5), row(1)), "too few lines for any bar"


def test_before_the_first_epoch_there_are_the_terms_of_the_step() -> None:
    lines = shown(terminal())
    assert lines[0].startswith("epoch 1/12 ")
    assert "firing rate" not in "\n".join(lines)
    assert any(re.fullmatch(r"loss +1\.500", line) for line in lines)


def test_layers_that_are_stuck_are_red_and_an_ann_has_active_units() -> None:
    red, cyan = "\x1b[31m", "\x1b[36m"
    stuck = row(1, firing_rates={"a.lif": 0.0, "b.lif": 0.5, "c.lif": 1.0})
    for run, colours in ((RUN, [red, cyan, red]), (replace(RUN, neuron=Rectified(), T=1), [red, cyan, cyan])):
        console = terminal(color_system="standard")
        console.print(TrainingView(console, run, STEPS, rows=[stuck]))
        text = console.export_text(styles=True)
        assert [
            text[: text.index(name)].rpartition("m")[0].rpartition("\x1b")[2] for name in ("a.lif", "b.lif", "c.lif")
        ] == [colour.strip("\x1bm") for colour in colours]
        assert ("firing rate" in text, "active units" in text) == (run.spiking, not run.spiking)


def test_a_terminal_without_unicode_gets_none() -> None:
    assert "\n".join(shown(terminal(120, encoding="ascii"), row(1))).isascii()


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join), unique=True), st.integers(0, 30))
def test_layers_are_grouped_into_so_many_parts(layers: list[str], most: int) -> None:
    parts = grouped(layers, most)
    assert len(parts) <= most
    inside = [layer for of in parts.values() for layer in of]
    assert len(inside) == len(set(inside))
    if len({layer.split(".")[0] for layer in layers}) <= most:
        assert sorted(inside) == sorted(layers)
    if len(layers) <= most:
        assert all(len(of) == 1 for of in parts.values()) or len(parts) < len(layers)


class Scalar:
    """A term on a device that counts how often somebody waits for it."""

    reads = 0

    def __float__(self) -> float:
        Scalar.reads += 1
        return 1.0


def test_the_terms_are_read_a_few_times_a_second_and_not_at_each_step() -> None:
    view, Scalar.reads = TrainingView(terminal(), RUN, 1000), 0
    view.shown -= 1
    for step in range(1, 1001):
        view.step(step, {"loss": Scalar()})  # type: ignore[dict-item]
    assert 1 <= Scalar.reads < 500
    view.step(12_000, {"loss": Scalar()})  # type: ignore[dict-item]
    assert view.progress.finished, "the last step is shown"
    piped, Scalar.reads = TrainingView(Console(file=io.StringIO()), RUN, 1000), 0
    piped.step(1, {"loss": Scalar()})  # type: ignore[dict-item]
    assert Scalar.reads == 0


@pytest.mark.parametrize("error", [None, KeyboardInterrupt], ids=str)
def test_the_live_view_leaves_a_clean_terminal(error: type[BaseException] | None) -> None:
    console, before = terminal(), (sys.stdout, sys.stderr)
    with contextlib.suppress(KeyboardInterrupt), TrainingView(console, RUN, STEPS) as view:
        view.step(1, terms(loss=1.5, accuracy=0.5))
        view.say("warning: layer stem.2 never fires")
        view.epoch(row(1))
        if error:
            raise error
    assert (sys.stdout, sys.stderr) == before
    written = console.file.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert written.index("\x1b[?25l") < written.index("never fires") < written.rindex("\x1b[?25h")
    assert written.rindex("validation") < written.rindex("\x1b[?25h"), "the last view stays"


def test_a_quiet_rank_shows_nothing_and_keeps_its_standard_error() -> None:
    console, before = terminal(quiet=True), sys.stderr
    with TrainingView(console, RUN, STEPS) as view:
        assert sys.stderr is before
        view.step(1, terms(loss=1.5, accuracy=0.5))
        view.epoch(row(1))
    assert console.file.buffer.getvalue() == b""  # type: ignore[attr-defined]


def test_control_c_in_a_real_terminal(processes: Processes, tmp_path: Path) -> None:
    if os.environ.get("TERM") in ("dumb", "unknown"):
        pytest.skip("a terminal that can't move its cursor gets lines")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    name = os.ttyname(theirs)
    pid = processes.start(*TINY, "--epochs", "500", "--out", "run", cwd=tmp_path, out=name, err=name)
    screen = os.read(ours, 10_000)
    os.close(theirs)
    while b"firing rate" not in screen:
        screen += os.read(ours, 10_000)
    os.kill(pid, signal.SIGINT)
    with contextlib.suppress(OSError):  # at the end, where nobody writes to the terminal any more
        while True:
            screen += os.read(ours, 10_000)
    os.close(ours)
    assert processes.wait() == 130
    assert screen.rindex(b"\x1b[?25l") < screen.rindex(b"\x1b[?25h"), "the cursor is there again"
    assert b"stopped (SIGINT), and saved; continue by: spikerate train --resume run" in screen[screen.rindex(b"\x1b[?25h") :]


# a pipe -----------------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_a_line_for_each_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out and err == ""
    lines = [line for line in out.splitlines() if line.startswith("epoch")]
    rows = RunFolder(tmp_path / "run").metrics()
    for k, (line, known) in enumerate(zip(lines, rows, strict=True), 1):
        exits = " ".join(f"{known[f'accuracy/exit{n}']:.1%}" for n in (1, 2, 3))
        assert line.startswith(f"epoch {k}/3  loss {known['loss']:.3f}  accuracy {known['accuracy']:.1%}  exits {exits}  ")
        assert f"  validation {known['validation']:.1%}  firing {known['firing_rate']:.3f}  " in line
        assert re.search(r" s  \d:\d\d:\d\d left$" if k < 3 else r" s$", line)
        assert all(0 <= rate <= 1 for rate in known["firing_rates"].values())


def test_a_long_epoch_has_lines_within_it() -> None:
    out = Console(file=io.StringIO(), width=200)
    view = TrainingView(out, RUN, 1000, rows=[row(1)])
    for step in range(1500, 1600):  # as a run that goes on within an epoch
        view.shown -= 3.1
        view.step(step, terms(loss=1.5, accuracy=0.5))
    line = r"epoch 2/12  step 596 of 1,000  loss 1\.500  accuracy 50\.0%  [\d,]+ images/s\n"
    assert re.fullmatch(line, out.file.getvalue())  # type: ignore[attr-defined]
    view.epoch(row(2))
    view.shown -= 200
    view.step(2001, terms(loss=1.5, accuracy=0.5))
    assert len(out.file.getvalue().splitlines()) == 2  # type: ignore[attr-defined]


def test_a_line_has_what_the_run_has() -> None:
    out = Console(file=io.StringIO(), width=200)
    view = TrainingView(out, replace(RUN, neuron=Rectified(), T=1), STEPS, "round 1 of 2")
    view.epoch({"epoch": 12, "loss": 1.0, "accuracy": 0.5, "temperature": 1.25, "firing_rate": 0.25, "seconds": 3.0})
    line = "round 1 of 2, epoch 12/12  loss 1.000  accuracy 50.0%  temperature 1.25  active 0.250  3.0 s\n"
    assert out.file.getvalue() == line  # type: ignore[attr-defined]


def test_rates_that_differ_are_named_by_reproduce(tmp_path: Path) -> None:
    folders = []
    for name, rate in (("then", 0.5), ("now", 0.25)):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        write_json(folder.path / "run.json", {"format": 2})
        known = {"epoch": 1, "loss": 1.0, "firing_rates": {"stem.2": rate, "head": 0.5}}
        (folder.path / "metrics.jsonl").write_text(json.dumps(known) + "\n")
        folders.append(folder)
    console = terminal(120)
    assert Repetition.of(folders[0], folders[0]).agrees
    repetition = Repetition.of(*folders)
    assert not repetition.agrees
    views.show_repetition(console, repetition)
    text = console.export_text()
    assert re.search(r"firing_rates\.stem\.2 +│ 1 +│ 0\.5 +│ 0\.25 ", text)
    assert "firing_rates.head" not in text


@pytest.mark.parametrize("out", ["a full disk", "a closed pipe", "a closed terminal"])
def test_a_run_whose_output_is_lost_goes_on(processes: Processes, tmp_path: Path, out: str) -> None:
    """Only a terminal that is closed asks it to stop, which it does as for any other signal: it saves."""
    run, err = tmp_path / "run", tmp_path / "err"
    err.touch()
    if out == "a full disk":
        pid = processes.start(*TINY, "--out", "run", cwd=tmp_path, out="/dev/full", err=str(err))
    elif out == "a closed pipe":
        os.mkfifo(tmp_path / "pipe")
        pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        pid = processes.start(*TINY, "--out", "run", cwd=tmp_path, out=str(tmp_path / "pipe"), err=str(err))
        wait_for(run / "run.json")
        os.close(pipe)
    else:
        ours, theirs = pty.openpty()
        pid = processes.start(*TINY, "--epochs", "500", "--out", "run", cwd=tmp_path, out=os.ttyname(theirs), err=str(err))
        screen = os.read(ours, 10_000)
        os.close(theirs)  # which the run has open by now
        while b"firing rate" not in screen:
            screen += os.read(ours, 10_000)
        os.close(ours)
        os.kill(pid, signal.SIGHUP)
    assert processes.wait() == (143 if out == "a closed terminal" else 0), err.read_text()
    read_tensors(run / "last.safetensors")
    said = "spikerate: the output can't be written: {}; the run continues without it\n"
    # A line between the end of the terminal and the signal is lost, too, and said then.
    whys = {"a full disk": ["No space left on device"], "a closed pipe": ["Broken pipe"]}.get(out, ["Input/output error"])
    assert err.read_text() in [*map(said.format, whys), *[""] * (out == "a closed terminal")]


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["train", "--help"]], ids=" ".join)
@pytest.mark.parametrize("closed", [True, False], ids=["a closed pipe", "a full disk"])
def test_a_command_whose_output_is_lost_ends(
    arguments: list[str], closed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if closed:
        read, write = os.pipe()
        os.close(read)
    with os.fdopen(write, "w") if closed else Path("/dev/full").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = int(stop.code or 0)
    said = "" if closed else "spikerate: the output can't be written: No space left on device\n"
    assert (status, capsys.readouterr().err) == (141 if closed else 2, said)


# TensorBoard ------------------------------------------------------------------------------------------------------------


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> steps and values, as TensorBoard reads them."""
    kind = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    read = kind(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def assert_logged(run: Path) -> None:
    """The log holds each epoch of `metrics.jsonl` once, at its step."""
    found, rows = logged(run / "tensorboard"), RunFolder(run).metrics()
    assert len(rows) == 3
    for name in rows[0].keys() - {"epoch", "firing_rates"}:
        assert found[name] == [(STEPS * known["epoch"], pytest.approx(known[name], rel=1e-6)) for known in rows], name
    for layer in rows[0]["firing_rates"]:
        values = [pytest.approx(known["firing_rates"][layer], rel=1e-6) for known in rows]
        assert [value for _, value in found[f"firing_rate/{layer}"]] == values


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, how: Callable[[], object]) -> None:
    real = tensorboard.Board.step

    def step(self: tensorboard.Board, step: int, terms: Any) -> None:
        real(self, step, terms)
        if step == steps:
            how()

    monkeypatch.setattr(tensorboard.Board, "step", step)


def die() -> None:
    raise KeyboardInterrupt


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("how", "status"), [(ask, 143), (die, 130)])
def test_a_resumed_run_goes_on_with_its_log(
    how: Callable[[], None], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(tensorboard, "_SECONDS", 0)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, STEPS + 2, how)
        assert main([*TINY, "--tensorboard", "--out", str(run)]) == status
    assert logged(run / "tensorboard")["step/loss"][-1][0] == STEPS + 2
    assert main(["train", "--resume", str(run)]) == 0
    assert_logged(run)
    steps = [step for step, _ in logged(run / "tensorboard")["step/loss"]]
    assert steps == list(range(1, 3 * STEPS + 1)), "what was done twice is there once"


def test_a_run_can_be_logged_from_its_middle_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    real = TrainingView.epoch
    with monkeypatch.context() as patch:
        patch.setattr(TrainingView, "epoch", lambda self, row: (real(self, row), ask()))
        assert main([*TINY, "--out", str(run)]) == 143
    assert main(["train", "--resume", str(run), "--tensorboard"]) == 0
    assert_logged(run)


def test_each_seed_and_each_round_has_its_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    small = [*TINY, "--epochs", "1", "--subset", "100", "--batch", "100", "--tensorboard"]
    assert main([*small, "--before", "ann:1:0.1", "--out", str(tmp_path / "rounds")]) == 0
    assert main([*small, "--seeds", "2", "--out", str(tmp_path / "seeds")]) == 0
    for folder in ("rounds/round1-ann", "rounds", "seeds/seed0", "seeds/seed1"):
        assert logged(tmp_path / folder / "tensorboard")["loss"][0][0] == 1


def test_without_tensorboard_there_is_one_sentence_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        real = TrainingView.epoch
        patch.setattr(TrainingView, "epoch", lambda self, row: (real(self, row), ask()))
        assert main([*TINY, "--out", str(run)]) == 143
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    before = {file: file.read_bytes() for file in run.iterdir()}
    capsys.readouterr()
    missing = "the run is logged for TensorBoard, which is missing: pip install 'spikerate[tensorboard]', or "
    for command in (
        [*TINY, "--tensorboard", "--out", str(tmp_path / "new")],
        ["train", "--resume", str(run), "--tensorboard"],
    ):
        assert main(command) == 2
        assert capsys.readouterr() == ("", f"spikerate: {missing}leave --tensorboard out\n")
    (run / "tensorboard").mkdir()
    assert main(["train", "--resume", str(run)]) == 2
    assert capsys.readouterr() == ("", f"spikerate: {missing}remove {run / 'tensorboard'}\n")
    (run / "tensorboard").rmdir()
    assert {file: file.read_bytes() for file in run.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    with pytest.raises(ValueError, match="TensorBoard, which is missing"):
        tensorboard.Board(run / "tensorboard", STEPS)
