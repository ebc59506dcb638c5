"""The command line as a subprocess, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from PIL import Image

from spikerate.cli.arguments import Show, parse
from spikerate.cli.commands import COMMANDS, Command
from spikerate.cli.main import main
from spikerate.runs.presets import PRESETS
from spikerate.system.files import pack_tensors, read_tensors
from support import ROOT
from support.images import truncate, write_cifar
from support.recordings import write_folder

Spikerate = Callable[..., CompletedProcess[str]]
TINY = ["--epochs", "1", "--width", "2", "--batch", "400", "--T", "2"]


def test_train_then_eval(spikerate: Spikerate, tmp_path: Path) -> None:
    done = spikerate("train", *TINY)
    assert done.returncode == 0, done.stderr
    for words in (
        "epoch 1/1",
        "loss",
        "reliable",
        "validation",
        "test accuracy",
        "95 % interval",
        "firing rate",
        "spikerate eval",
    ):
        assert words in done.stdout
    folder = tmp_path / "runs" / "digits-esd-seed0"
    record = json.loads((folder / "run.json").read_text())
    assert record["preset"] == "digits-esd"
    assert record["command"] == "spikerate train " + " ".join(TINY)
    assert record["run"]["model"]["width"] == 2
    assert record["data"]["sizes"] == {"train": 1257, "validation": 180, "test": 360}
    assert record["environment"]["packages"]["torch"]
    result = json.loads((folder / "result.json").read_text())
    for weights in ("best", "last"):
        looked = spikerate("eval", str(folder), "--weights", weights)
        assert looked.returncode == 0, looked.stderr
        assert f"{result['test_accuracy']:.2%}" in looked.stdout
        assert " stage4.1.activation2 " in looked.stdout
    looked = spikerate("eval", str(folder), "--fold")
    differ, places = re.match(r"batch norm folded: ([0-9,]+) of ([0-9,]+) spikes differ\n", looked.stdout).groups()  # type: ignore[union-attr]
    assert int(differ.replace(",", "")) <= 1e-3 * int(places.replace(",", ""))
    assert spikerate("train", *TINY, "--rule.chunk", "1").returncode == 0
    assert (tmp_path / "runs" / "digits-esd-seed0-2" / "result.json").is_file()


@pytest.mark.parametrize("preset", ["cifar10-small-rate", "cifar10-bptt"])
def test_train_on_cifar10_files(spikerate: Spikerate, tmp_path: Path, preset: str) -> None:
    write_cifar(tmp_path)
    options = ["--data", ".", "--data.validation", "4", "--no-compile", "--out", "here", *TINY]
    done = spikerate("train", preset, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "here" / "run.json").read_text())["data"]["sizes"] == {
        "train": 26,
        "validation": 4,
        "test": 6,
    }
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "cifar-10-batches-py").rename(moved / "cifar-10-batches-py")
    assert spikerate("eval", "here").returncode == 2
    assert spikerate("eval", "here", "--data", "moved").returncode == 0


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in PRESETS)
    assert main(["show", "cifar10-esd"]) == 0
    shown = capsys.readouterr().out
    for number in ("11,173,962", "1,213,214", "555,422,720"):
        assert number in shown
    assert main(["show", "imagenet-sew-rate"]) == 0
    assert "21,797,672" in capsys.readouterr().out


def test_predict_and_accuracy_against_time(spikerate: Spikerate, tmp_path: Path) -> None:
    assert spikerate("train", *TINY, "--out", "run").returncode == 0
    curve = spikerate("eval", "run", "--T", "5")
    assert curve.returncode == 0, curve.stderr
    assert "trained with T = 2" in curve.stdout
    rows = [line for line in curve.stdout.partition("Firing rates")[0].splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows] == list("12345")
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for k, name in enumerate(("a.png", "more/b.jpg")):
        Image.fromarray(np.full((20, 30, 3), 40 * k, np.uint8)).save(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "notes.txt").write_text("x")
    done = spikerate("predict", "run", "pictures", "pictures/a.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("a.png") == 2
    assert done.stdout.count("b.jpg") == 1
    (tmp_path / "broken.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for files, words in (
        (["broken.png"], "broken.png can't be decoded"),
        (["empty"], "empty contains no file that ends in"),
        (["gone.png"], "gone.png does not exist"),
        ([], "got no files"),
    ):
        bad = spikerate("predict", "run", *files)
        assert bad.returncode == 2
        assert words in bad.stderr.replace("\n", " ")
    odd = tmp_path / "pictures" / "x[bold][red].png"
    odd.write_bytes((tmp_path / "pictures" / "a.png").read_bytes())
    half = spikerate("predict", "run", "pictures", "broken.png")
    assert half.returncode == 2
    assert "x[bold][red].png" in half.stdout, "what was done is shown, as it is"
    weights, facts = read_tensors(tmp_path / "run" / "best.safetensors")
    first = next(name for name in weights if name.endswith("stem.0.weight"))
    weights[first][0] = torch.nan
    (tmp_path / "run" / "best.safetensors").write_bytes(pack_tensors(weights, facts))
    for command, out in ((["predict", "run", "pictures/a.png"], "a.png"), (["eval", "run"], "Firing rates")):
        broken = spikerate(*command)
        assert broken.returncode == 1
        assert "stem.0 (Conv2d), whose weight is not finite already" in broken.stderr.replace("\n", " ")
        hidden = spikerate(*command, "--no-check-finite")
        assert hidden.returncode == 0 and out in hidden.stdout, "the answers are finite, and wrong"
    record = tmp_path / "run" / "run.json"
    content = json.loads(record.read_text())
    for change in ({"classes": None}, {"std": [0]}, {"mean": []}, {"shape": [1, 0, 0]}):
        record.write_text(json.dumps(content | {"data": content["data"] | change}))
        spoilt = spikerate("predict", "run", "pictures")
        assert spoilt.returncode == 2
        assert "does not describe the samples" in spoilt.stderr
    record.write_text(json.dumps(content | {"data": []}))
    assert "has an entry data that is not a record" in spikerate("train", "--resume", "run").stderr


def test_eval_takes_the_data_of_the_run_only(spikerate: Spikerate, tmp_path: Path) -> None:
    write_cifar(tmp_path)
    options = ["--data", ".", "--data.validation", "4", "--no-compile", "--out", "here", *TINY]
    assert spikerate("train", "cifar10-small-rate", *options).returncode == 0
    file = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    file.write_bytes((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())
    for command in ("eval", "reproduce"):
        done = spikerate(command, "here")
        assert done.returncode == 2
        assert "its checksums differ" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cifar10-vggsnn-rate", "--data.size", "24"], "needs a side of 16, 32, ..., and the samples are 24 x 24"),
        (["cifar10-rate", "--subset", "1"], "1 training samples with accumulate=1 on 1 ranks give parts of 1"),
        (["cifar10-rate", "--subset", "3", "--accumulate", "4"], "give parts of 0: batch norm needs at least two samples"),
        (["cifar10-rate", "--data.size", "5000"], "data.size is 5000: give a number from 8 to 4096"),
    ],
)
def test_nothing_is_left_of_a_run_that_can_not_begin(
    spikerate: Spikerate, tmp_path: Path, arguments: list[str], words: str
) -> None:
    write_cifar(tmp_path)
    done = spikerate("train", *arguments, "--data", ".", "--data.validation", "4", "--out", "here", "--width", "2")
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert not (tmp_path / "here").exists()


def test_recordings_train_and_are_predicted(spikerate: Spikerate, tmp_path: Path) -> None:
    write_folder(tmp_path / "mine")
    options = [
        "--data",
        "mine",
        "--data.sensor",
        "34",
        "34",
        "--data.size",
        "32",
        "--T",
        "3",
        "--epochs",
        "1",
        "--width",
        "2",
    ]
    options += ["--batch", "2", "--data.cache", "cache", "--out", "run"]
    done = spikerate("train", "events-esd", *options)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache").iterdir())) == 1
    shown = spikerate("predict", "run", "mine/val")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("1.npz") == 3
    late = spikerate("eval", "run", "--T", "4")
    assert late.returncode == 2
    assert "were cut into 3 frames" in late.stderr
    (tmp_path / "mine" / "train" / "a" / "2.npz").write_bytes(b"PK")
    stopped = spikerate("train", "events-rate", *options[:-1], "other")
    assert stopped.returncode == 2
    assert "2.npz" in stopped.stderr
    assert "--data.broken skip" in stopped.stderr
    assert not (tmp_path / "other").exists()
    skipped = spikerate("train", "events-rate", *options[:-1], "other", "--data.broken", "skip")
    assert skipped.returncode == 0, skipped.stderr
    assert "1 broken files were left out in total" in skipped.stdout
    assert "2.npz" in json.loads((tmp_path / "other" / "run.json").read_text())["data"]["skipped"][0]


def test_doctor_and_help(spikerate: Spikerate, capsys: pytest.CaptureFixture[str]) -> None:
    doctor = spikerate("doctor")
    assert doctor.returncode == 0
    for words in ("torch", "bf16", "torch.compile", "device"):
        assert words in doctor.stdout
    assert main([]) == main(["--help"]) == main(["--version"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "spikerate 0." in shown[-1]
    for name, command in COMMANDS.items():
        for rest, what in command.usage.items():
            assert shown.count(f"  {name} {rest}".ljust(shown[2].index("train a network")) + what) == 2, "a line of its own"
    helped = spikerate("train", "--help")
    assert helped.returncode == 0
    assert "--rule.chunk" in helped.stdout


def test_a_command_is_one_entry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []

    def perform(options: Show, line: str) -> int:
        lines.append(f"{options.preset} {line}")
        return 7

    greet = Command(partial(parse, Show), perform, {"NAME": "says hello"})
    monkeypatch.setitem(COMMANDS, "greet", greet)
    assert (main(["gret"]), main(["greet"]), main(["greet", "you there"])) == (2, 2, 7)
    assert lines == ["you there spikerate greet 'you there'"]
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert "did you mean greet?" in err
    assert re.search("\n  greet NAME +says hello\n", out)


BAD: list[tuple[list[str], str]] = [
    (["trian"], "did you mean train"),
    (["fly"], f"give one of {', '.join(COMMANDS)}\n"),
    (["train", "digit-esd"], "did you mean digits-esd"),
    (["train", "--epoch", "3"], "perhaps you meant --epochs"),
    (["train", "--T", "0"], "T is 0"),
    (["train", "--T", "x"], "--T"),
    (["train", "--loss.beta", "-1"], "SelfDistillation.beta is -1.0"),
    (["train", "--width", "0"], "model.width is 0"),
    (["train", "--rule.chunk", "0"], "RateBP.chunk is 0"),
    (["train", "--model.name", "resnet21"], "resnet18"),
    (["train", "--device", "cuda:77"], "device is 'cuda:77'"),
    (["train", "--out", "occupied"], "is not empty: choose another"),
    (["train", "cifar10-esd"], "--data PATH"),
    (["train", "cifar10-esd", "--data", "nowhere"], "nowhere does not exist"),
    (["train", "cifar10-esd", "--data", "occupied"], "is incomplete"),
    (["train", "cifar10-esd", "--data", "broken"], "data_batch_2 is truncated"),
    (["train", "cifar10-esd", "--data", "whole", "--data.validation", "99"], "data.validation is 99"),
    (["eval"], "run"),
    (["eval", "occupied"], "contains no run"),
    (["show", "nothing"], "there is no preset 'nothing'"),
    (["list", "--all"], "--all"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_sentence(spikerate: Spikerate, tmp_path: Path, arguments: list[str], words: str) -> None:
    for name in ("occupied", "broken", "whole"):
        (tmp_path / name).mkdir()
    (tmp_path / "occupied" / "thesis.tex").write_text("x")
    truncate(write_cifar(tmp_path / "broken") / "data_batch_2")
    write_cifar(tmp_path / "whole")
    before = sorted(tmp_path.rglob("*"))
    done = spikerate(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("spikerate: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def script() -> list[str]:
    """What the script does, wherever pip has put it."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    module, function = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["spikerate"].split(":")
    return [sys.executable, "-c", f"from {module} import {function}; {function}()"]


def test_started_as_a_script_and_as_a_module() -> None:
    for command in (script(), [sys.executable, "-m", "spikerate"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True)
        assert done.stdout == f"spikerate {version('spikerate')}\n", done.stderr


@pytest.mark.parametrize("way", ["script", "module"])
def test_control_c_while_the_command_line_is_starting(tmp_path: Path, way: str) -> None:
    """In the seconds in which torch is imported."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join((str(tmp_path), str(ROOT / "src")))
    command = script() if way == "script" else [sys.executable, "-m", "spikerate"]
    done = subprocess.run([*command, "list"], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
