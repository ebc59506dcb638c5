"""Trained weights as the start of a new run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spikerate.models import Branched
from spikerate.report.gather import gather
from spikerate.runs.config import Model
from spikerate.runs.record import RunFolder
from spikerate.runs.start import Start
from spikerate.runs.trained import load
from spikerate.system.files import pack_tensors, read_tensors
from support.commands import TINY, refused, tell

CLASSES = tuple("0123456789")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with branches."""
    path = tmp_path_factory.mktemp("trained") / "run"
    assert tell("train", *TINY, "--out", str(path))[0] == 0
    return path


def network(run: Path, classes: int = 10) -> Branched:
    torch.manual_seed(1)
    built = RunFolder(run).config().build(classes, (1, 8, 8))
    assert isinstance(built, Branched)
    return built


def test_all_weights_come_over(trained: Path, tmp_path: Path) -> None:
    """Those of the branches too, where there are any."""
    own, best = network(trained), read_tensors(trained / "best.safetensors")[0]
    start = Start.read(trained).onto(CLASSES)
    assert start.record(own)["fresh"] == []
    start.hand_on(own)
    assert all(torch.equal(value, best[f"network.{name}"]) for name, value in own.state_dict().items())
    file = tmp_path / "weights.safetensors"
    assert tell("export", str(trained), str(file))[0] == 0
    fresh, start = network(trained), Start.read(file).onto(CLASSES)
    branches = {name: value.clone() for name, value in fresh.branches.state_dict().items()}
    assert start.record(fresh)["fresh"] == ["branches"]
    start.hand_on(fresh)
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.body.state_dict().values(), load(file).state_dict().values(), strict=True)
    )
    assert all(torch.equal(value, branches[name]) for name, value in fresh.branches.state_dict().items())
    plain = own.body
    start = Start.read(trained).onto(CLASSES)
    assert start.record(plain)["fresh"] == []


@pytest.mark.parametrize("classes", [("a", "b", "c"), tuple("abcdefghij")], ids=["fewer", "others"])
def test_for_other_classes_the_classifiers_are_fresh(trained: Path, classes: tuple[str, ...]) -> None:
    own, start = network(trained, len(classes)), Start.read(trained).onto(classes)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    best = read_tensors(trained / "best.safetensors")[0]
    assert start.record(own)["fresh"] == ["classifier"]
    start.hand_on(own)
    fresh = {name for name, value in own.state_dict().items() if torch.equal(value, before[name])}
    linear = {name for name, module in own.named_modules() if isinstance(module, nn.Linear)}
    assert len(linear) == 4 and {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")} <= fresh
    for name, value in own.state_dict().items():
        if name.rpartition(".")[0] not in linear:
            assert torch.equal(value, best[f"network.{name}"]), name


def test_weights_that_do_not_fit(trained: Path, tmp_path: Path) -> None:
    run = RunFolder(trained).config()
    start = Start.read(trained)
    for other in (replace(run, model=Model(width=4)), replace(run, model=Model("resnet20", 2))):
        with pytest.raises(ValueError, match="is of another network: "):
            start.hand_on(other.build(10, (1, 8, 8)))
    with pytest.raises(ValueError, match=r"is of another network: stem.* is \(2, 1, 3, 3\), and here \(2, 3, 3, 3\)"):
        start.hand_on(run.build(10, (3, 8, 8)))
    spoilt = shutil.copytree(trained, tmp_path / "spoilt")
    tensors, facts = read_tensors(trained / "best.safetensors")
    tensors["network.body.head.2.bias"][0] = torch.nan
    (spoilt / "best.safetensors").write_bytes(pack_tensors(tensors, facts))
    assert "has weights that are not finite, in head.2.bias" in refused("train", *TINY, "--init", str(spoilt))
    assert "nowhere does not exist" in refused("train", *TINY, "--init", str(tmp_path / "nowhere"))


def test_a_run_from_another_is_recorded_resumed_and_reproduced(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, run = shutil.copytree(trained, tmp_path / "first"), tmp_path / "run"
    with monkeypatch.context() as patch:  # ended before the first checkpoint
        patch.setattr("spikerate.runs.train.Trainer._save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        status, out, _ = tell("train", *TINY, "--seed", "1", "--init", str(first), "--out", str(run))
    assert status == 130 and f"starting from the weights of {first}\n" in out
    record = json.loads((run / "run.json").read_text())["init"]
    assert record == {"path": str(first), "sha256": Start.read(first).sha256, "fresh": []}
    seen: list[Any] = []
    monkeypatch.setattr(Start, "hand_on", seen_by(Start.hand_on, seen))
    assert tell("train", "--resume", str(run))[0] == 0 and len(seen) == 1
    assert tell("train", "--resume", str(run))[0] == 0 and len(seen) == 1
    assert "every metric of every epoch agrees" in tell("reproduce", str(run))[1]
    groups = gather([run, trained]).groups
    assert len(groups) == 2 and "weights to start from" in str(groups[0].card)
    first.rename(tmp_path / "moved")
    said = refused("reproduce", str(run), "--out", str(tmp_path / "again"))
    assert f"first does not exist any more: give the weights of sha256 {record['sha256'][:16]}" in said
    assert tell("reproduce", str(run), "--init", str(tmp_path / "moved"), "--out", str(tmp_path / "again"))[0] == 0
    other = tmp_path / "moved" / "best.safetensors"
    tensors, facts = read_tensors(other)
    tensors["network.body.head.2.bias"] += 1
    other.write_bytes(pack_tensors(tensors, facts))
    said = refused("reproduce", str(run), "--init", str(tmp_path / "moved"), "--out", str(tmp_path / "third"))
    assert "moved has other weights than before: give the weights of sha256" in said


def seen_by(method: Any, seen: list[Any]) -> Any:
    def call(self: Start, own: nn.Module) -> None:
        seen.append(own)
        method(self, own)

    return call


def test_rounds_and_seeds_start_from_a_run_too(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(Start, "hand_on", seen_by(Start.hand_on, seen))
    more = ["--before", "ann:1:0.1", "--init", str(trained)]
    status, _, err = tell("train", *TINY, *more, "--out", str(tmp_path / "rounds"))
    assert status == 0 and len(seen) == 1, err
    seeds = ["train", *TINY, "--seeds", "2", "--out", str(tmp_path / "seeds")]
    assert tell(*seeds, "--init", str(trained))[0] == 0 and len(seen) == 3
    assert "contains a run with other settings" in refused(*seeds)


def test_a_resume_says_what_can_be_changed(trained: Path) -> None:
    said = refused("train", "--resume", str(trained), "--epochs", "3")
    assert (
        "a run is resumed with its own settings, and only --data, --device, --save-minutes and --tensorboard can be given"
        in said
    )
    assert "to change others: spikerate train PRESET --init RUN" in said
