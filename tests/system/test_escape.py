"""What files and folders are called can't steer a terminal, a page or a log."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from spikerate.cli.console import complain, console, table
from spikerate.cli.main import main
from spikerate.data import Data, Units
from spikerate.report.gather import gather
from spikerate.report.page import write
from spikerate.rules import BPTT
from spikerate.runs import presets
from spikerate.runs.config import Model, Neuron, Run
from spikerate.runs.record import RunFolder
from spikerate.runs.trained import Card, Trained, read_trained
from spikerate.system.codec import encode
from spikerate.system.escape import escaped
from spikerate.system.files import digest, pack_tensors, read_tensors

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\nspikerate: all is well\r\u202egnp.exe\u2066\u200f\u2028\x9b31m[red]x[/red]:smile:"
"""Orders to a terminal, a line of its own, marks of direction, markup of rich."""
STEERING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def steering(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in STEERING}


@given(st.text(st.characters(exclude_categories=[])))
def test_what_steers_is_written_out_and_the_rest_stays(text: str) -> None:
    shown = escaped(text)
    assert not steering(shown)
    assert len(shown.splitlines()) <= 1
    shown.encode()  # halves of pairs could not be
    if not steering(text):
        assert shown == text


def test_strings_tables_and_sentences_go_through_it(capsys: pytest.CaptureFixture[str]) -> None:
    shown = console()
    rows = table(f"title {HOSTILE}", "name", f"column {HOSTILE}")
    rows.add_row(HOSTILE, HOSTILE)
    for what in (HOSTILE, rows, "plain"):
        shown.print(what)
    complain(HOSTILE)
    out, err = capsys.readouterr()
    assert not steering(out) - {"\n"} and "[red]x[/red]:smile:" in out
    assert out.splitlines()[0].startswith(r"a\x1b[2J\x1b]0;title\x07b\nspikerate: all is well\r\u202egnp.exe")
    assert err.count("\n") == 1 and not steering(err) - {"\n"}


def test_a_run_with_hostile_names_is_shown_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = Run(Data("digits", subset=24), Model("vgg11", 1), rule=BPTT(), T=1, epochs=1, batch=8)
    monkeypatch.setitem(presets.PRESETS, "tiny", presets.Preset(tiny, "paper", "title", "method", "", ""))
    assert main(["train", "tiny", "--out", "run"]) == 0
    name = "run " + HOSTILE.replace("/", "|")
    shutil.copytree("run", name)
    record = json.loads((Path(name) / "run.json").read_text())
    record["preset"] = record["command"] = HOSTILE
    record["data"]["classes"] = [f"{k} {HOSTILE}" for k in range(10)]
    (Path(name) / "run.json").write_text(json.dumps(record))
    picture = Path(HOSTILE.replace("/", "|") + ".png")
    Image.new("L", (8, 8)).save(picture)
    capsys.readouterr()
    for words in (
        ["predict", name, str(picture)],
        ["eval", name],
        ["report", name],
        ["export", name, name + ".safetensors"],
        ["train", "--resume", name],
        ["report", name, name],
        ["eval", HOSTILE],
        ["predict", name, HOSTILE],
        ["show", HOSTILE],
        [HOSTILE],
        ["eval", os.fsdecode(b"\xff\xfe")],
    ):
        status = main(words)
        out, err = capsys.readouterr()
        assert status in (0, 2) and not steering(out + err) - {"\n"}, (words, out, err)
        assert not any(line.startswith("spikerate: all is well") for line in (out + err).splitlines())
        assert err.count("\n") == (1 if status else 0)
    write(gather([Path(name)]), Path("page.html"))
    page = Path("page.html").read_text()
    assert not steering(page) - {"\n", "\u200b"} and "[red]x[/red]" in page


@pytest.mark.parametrize("depth", [60, 900, 100_000])
def test_json_that_is_deep_is_a_sentence(depth: int, tmp_path: Path) -> None:
    deep = '{"x":' * depth + "[]" + "}" * depth
    (tmp_path / "run.json").write_text(f'{{"format": 2, "run": {deep}}}')
    with pytest.raises(ValueError, match=r"run.json can't be read as JSON: its lists and records are nested"):
        RunFolder.open(tmp_path).config()
    tensors = {"x": torch.zeros(1)}
    found = {"facts": deep, "sha256": digest(tensors, deep)}
    (tmp_path / "net.safetensors").write_bytes(safetensors.torch.save(tensors, found))
    with pytest.raises(ValueError, match=r"net.safetensors is no file of spikerate"):
        read_tensors(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    "told",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "-1", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "9" * 40, "RANK": "0", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": ""},
    ],
    ids=str,
)
def test_what_a_launcher_left_in_the_environment_is_checked(
    told: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "digits-bptt", "--out", "run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("spikerate: the environment has WORLD_SIZE=") and err.count("\n") == 1 and "torchrun" in err


@pytest.mark.parametrize(
    "words", [["train", "--out", ""], ["train", "--out="], ["train", "--resume", ""], ["eval", ""]], ids=str
)
def test_an_empty_word_is_no_folder(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "got an empty argument, as from a variable that is not set" in capsys.readouterr().err


def test_a_short_file_makes_no_large_network(tmp_path: Path) -> None:
    card = Card(Model("vgg11", 1), Neuron(), False, 2, (1, 8, 8), False, ("a", "b"), Units((0.0,), (1.0,), 255.0))
    whole = Trained(card.build(), card)
    for large, words in (
        (replace(card, model=Model("vgg11", 4096)), "is of another network"),
        (card, "T is|its numbers are impossible"),
    ):
        facts = whole.facts() | {"network": encode(large)}
        facts["network"]["T"] = 2 if large is not card else 10**9
        file = tmp_path / "net.safetensors"
        file.write_bytes(pack_tensors(whole.network.state_dict(), facts))
        with pytest.raises(ValueError, match=words):
            read_trained(file)
