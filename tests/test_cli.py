"""The command line as a subprocess, in an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from test_data import truncate, write_cifar

from spikerate.cli import main
from spikerate.presets import PRESETS

Spikerate = Callable[..., CompletedProcess[str]]
TINY = ["--epochs", "1", "--width", "2", "--batch", "400", "--T", "2"]


def test_train_then_eval(spikerate: Spikerate, tmp_path: Path) -> None:
    done = spikerate("train", *TINY)
    assert done.returncode == 0, done.stderr
    for words in (
        "epoch 1/1",
        "loss",
        "reliable",
        "held-out",
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
    assert record["data"]["sizes"] == {"train": 1257, "held_out": 180, "test": 360}
    assert record["environment"]["packages"]["torch"]
    result = json.loads((folder / "result.json").read_text())
    for weights in ("best", "last"):
        looked = spikerate("eval", str(folder), "--weights", weights)
        assert looked.returncode == 0, looked.stderr
        assert f"{result['test_accuracy']:.2%}" in looked.stdout
        assert "stages.stage4.1.activation2" in looked.stdout
    assert spikerate("train", *TINY, "--rule.chunk", "1").returncode == 0
    assert (tmp_path / "runs" / "digits-esd-seed0-2" / "result.json").is_file()


@pytest.mark.parametrize("preset", ["cifar10-small-rate", "cifar10-bptt"])
def test_train_on_cifar10_files(spikerate: Spikerate, tmp_path: Path, preset: str) -> None:
    write_cifar(tmp_path)
    options = ["--data", ".", "--data.held-out", "4", "--no-compile", "--out", "here", *TINY]
    done = spikerate("train", preset, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "here" / "run.json").read_text())["data"]["sizes"] == {
        "train": 26,
        "held_out": 4,
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
    for name in PRESETS:
        assert name in listed
        assert main(["show", name]) == 0
        shown = capsys.readouterr().out
        assert "stage4" in shown
        assert ("11,173,962" in shown) == (name in ("cifar10-esd", "cifar10-rate", "cifar10-bptt"))
    assert main(["show", "cifar10-esd"]) == 0
    assert "1,213,214" in capsys.readouterr().out


def test_doctor_and_help(spikerate: Spikerate, capsys: pytest.CaptureFixture[str]) -> None:
    doctor = spikerate("doctor")
    assert doctor.returncode == 0
    for words in ("torch", "bf16", "torch.compile", "device"):
        assert words in doctor.stdout
    assert main([]) == main(["--help"]) == main(["--version"]) == 0
    assert "spikerate 0." in capsys.readouterr().out
    helped = spikerate("train", "--help")
    assert helped.returncode == 0
    assert "--rule.chunk" in helped.stdout


BAD: list[tuple[list[str], str]] = [
    (["trian"], "did you mean train"),
    (["fly"], "give one of train, eval, reproduce, fetch, list, show, doctor"),
    (["train", "digit-esd"], "did you mean digits-esd"),
    (["train", "--epoch", "3"], "perhaps you meant --epochs"),
    (["train", "--T", "0"], "T is 0"),
    (["train", "--T", "x"], "--T"),
    (["train", "--loss.beta", "-1"], "SelfDistillation.beta is -1.0"),
    (["train", "--width", "0"], "model.width is 0"),
    (["train", "--rule.chunk", "0"], "RateBP.chunk is 0"),
    (["train", "--model.name", "resnet20"], "resnet18"),
    (["train", "--device", "cuda:77"], "device is 'cuda:77'"),
    (["train", "--out", "occupied"], "holds something else already"),
    (["train", "cifar10-esd"], "--data PATH"),
    (["train", "cifar10-esd", "--data", "nowhere"], "nowhere does not exist"),
    (["train", "cifar10-esd", "--data", "occupied"], "is incomplete"),
    (["train", "cifar10-esd", "--data", "broken"], "data_batch_2 is truncated"),
    (["train", "cifar10-esd", "--data", "whole", "--data.held-out", "99"], "data.held_out is 99"),
    (["eval"], "run"),
    (["eval", "occupied"], "holds no run"),
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


def test_started_as_a_script_and_as_a_module() -> None:
    for command in (["spikerate"], [sys.executable, "-m", "spikerate"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True)
        assert done.stdout == f"spikerate {version('spikerate')}\n", done.stderr
