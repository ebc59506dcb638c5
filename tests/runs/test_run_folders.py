"""Run folders from strangers, edited ones, and ones that two commands want at once."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spikerate.data.cache import cached, keeps_caches
from spikerate.data.download import Source, fetch
from spikerate.report.gather import gather
from spikerate.runs.record import LOCK, RunFolder, sole_writer
from spikerate.runs.state import parts_of
from spikerate.system.files import is_leftover, open_plain, pack_tensors, read_tensors, write_whole
from spikerate.system.progress import untracked
from support.commands import TINY, refused, tell
from support.processes import Processes, wait_for

FILES = ("run.json", "metrics.jsonl", "last.safetensors", "best.safetensors", "result.json", "examples.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is never written to; tests copy it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    assert tell("train", *TINY, "--out", str(path))[0] == 0
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def home(tmp_path: Path, finished: Path) -> Iterator[Path]:
    """A user's files, which no command may change."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "startup").write_text("mine")
    for name in FILES:
        shutil.copy(finished / name, home)
    before = {p: p.read_bytes() for p in home.rglob("*")}
    yield home
    assert {p: p.read_bytes() for p in home.rglob("*")} == before


# links, pipes and devices -----------------------------------------------------------------------------------------------


def a_link(place: Path, home: Path) -> None:
    place.symlink_to(home / (place.name if (home / place.name).exists() else "startup"))


def a_link_to_nothing(place: Path, home: Path) -> None:
    place.symlink_to(home / "new")


def a_pipe(place: Path, home: Path) -> None:
    os.mkfifo(place)


def a_device(place: Path, home: Path) -> None:
    try:
        os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # zeros without end
    except PermissionError:
        pytest.skip("no right to make a device here")


KINDS = [a_link, a_link_to_nothing, a_pipe, a_device]
READERS: dict[str, tuple[str, ...]] = {
    "run.json": ("report", "resume", "eval", "export", "predict", "gradient", "reproduce"),
    "metrics.jsonl": ("report",),
    "last.safetensors": ("resume",),
    "best.safetensors": ("eval", "export", "predict", "gradient"),
    "result.json": ("report", "reproduce"),
    "examples.safetensors": ("report",),
    "report.html": ("report",),
    LOCK: ("resume",),
}


def arguments(command: str, run: Path, picture: Path) -> list[str]:
    where = str(run)
    more = {"export": [str(run.parent / "out.safetensors")], "predict": [str(picture)], "gradient": ["--samples", "4"]}
    return ["train", "--resume", where] if command == "resume" else [command, where, *more.get(command, [])]


@pytest.mark.parametrize("plant", KINDS, ids=lambda f: f.__name__)
def test_what_is_no_file_is_refused_at_each_name_that_is_read(
    plant: Callable[[Path, Path], None], run: Path, home: Path, tmp_path: Path
) -> None:
    """In one sentence, without waiting for a pipe; and nothing outside the folder changes."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"")
    for name, commands in READERS.items():
        place, aside = run / name, tmp_path / "aside"
        if place.exists():
            place.rename(aside)
        plant(place, home)
        for command in commands:
            said = refused(*arguments(command, run, picture))
            assert f"{place} is a " in said and "and not a file" in said, (name, command, said)
        place.unlink()
        if aside.exists():
            aside.rename(place)
    assert not (tmp_path / "out.safetensors").exists() and not (run.with_name("run-again")).exists()


def test_names_that_could_be_foreseen_lead_nowhere(run: Path, home: Path, tmp_path: Path) -> None:
    """Links under the names that temporary files might have, through every command that writes."""
    names = [*FILES, "report.html", "gradient.json", "gradient.svg", "out.safetensors"]
    for folder in (run, tmp_path, tmp_path / "new"):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / f".{name}.tmp").symlink_to(home / "startup")
    assert tell("report", str(run))[0] == 0
    assert tell("train", "--resume", str(run))[0] == 0
    assert tell("export", str(run), str(tmp_path / "out.safetensors"))[0] == 0
    assert "is not empty: choose another" in refused("train", *TINY, "--out", str(tmp_path / "new"))
    assert all((run / f".{name}.tmp").is_symlink() for name in names)


def test_a_temporary_file_is_its_writers_own(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    for plant in KINDS:
        place = tmp_path / ".file.0000000000000000.tmp"
        plant(place, home)
        with pytest.raises(FileExistsError):
            write_whole(tmp_path / "file", b"new")
        assert not is_leftover(place)
        place.unlink()
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("plant", KINDS, ids=lambda f: f.__name__)
def test_a_file_takes_the_place_of_what_is_there_and_follows_it_not(plant: Any, tmp_path: Path, home: Path) -> None:
    plant(tmp_path / "file", home)
    write_whole(tmp_path / "file", b"new")
    with open_plain(tmp_path / "file") as file:
        assert file.read() == b"new"


def test_folders_inside_a_run_folder_are_no_links(run: Path, home: Path, tmp_path: Path) -> None:
    (home / "empty").mkdir()
    for name in ("tensorboard", "gradient"):
        (run / name).symlink_to(home / "empty")
    assert "tensorboard is a link, and spikerate does not write through links" in refused("train", "--resume", str(run))
    (run / "tensorboard").unlink()
    assert tell("gradient", str(run), "--samples", "4", "--directions", "1")[0] == 0
    assert (run / "gradient-2" / "gradient.json").is_file()
    rounds = [*TINY, "--before", "ann:1:0.1"]
    stop = tmp_path / "rounds"
    assert tell("train", *rounds, "--out", str(stop))[0] == 0
    shutil.rmtree(stop / "round1-ann")
    (stop / "round1-ann").symlink_to(home / "empty")
    for command in (["train", "--resume", str(stop)], ["report", str(stop)]):
        assert "round1-ann is a link, and spikerate does not write through links" in refused(*command)
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "seed0").symlink_to(home / "empty")
    assert "seed0 is a link" in refused("train", *TINY, "--seeds", "2", "--out", str(tmp_path / "seeds"))
    (home / "empty").rmdir()


def test_a_strangers_record_names_no_cache(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which no cache is kept yet is not begun because a record says so."""
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "own")
    path, used = tmp_path / "run", tmp_path / "used"
    recorded = ["digits-dvs-bptt", *TINY[1:]]
    assert tell("train", *recorded, "--data.cache", str(used), "--out", str(path))[0] == 0
    assert keeps_caches(used) and not keeps_caches(home)
    assert tell("eval", str(path))[0] == 0 and not (tmp_path / "own").exists()
    record = json.loads((path / "run.json").read_text())
    record["run"]["data"]["cache"] = str(home)
    (path / "run.json").write_text(json.dumps(record))
    status, out, _ = tell("eval", str(path))
    assert status == 0 and f"there is no cache in {home}, which the run names" in out
    assert keeps_caches(tmp_path / "own")


def test_what_a_killed_writer_leaves_is_removed(run: Path) -> None:
    left = [run / ".last.safetensors.0123456789abcdef.tmp", run / ".run.json.tmp"]
    others = [run / ".report.html.0123456789abcdef.tmp", run / ".notes.tmp"]
    for file in (*left, *others):
        file.write_text("half")
    assert tell("train", "--resume", str(run))[0] == 0
    assert not any(file.exists() for file in left) and all(file.exists() for file in others)


def test_a_transfer_appends_to_no_link(tmp_path: Path, home: Path) -> None:
    source = Source({"http://127.0.0.1:9/set.tar.gz": "0" * 64}, "set")
    for plant in KINDS:
        part = tmp_path / "set.tar.gz.part"
        plant(part, home)
        with pytest.raises(ValueError, match=r"set.tar.gz.part is a (link|pipe|device) and not a file"):
            fetch(source, tmp_path)
        part.unlink()


# checkpoints that tell what can't be ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second epoch."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spikerate.runs.train.Trainer._wish", lambda self, saved: 2 * int(next(steps) == 3))
        steps = itertools.count()
        assert tell("train", *TINY[:-1], "3", "--out", str(path))[0] == 143
    facts = read_tensors(path / "last.safetensors")[1]
    assert (facts["epoch"], facts["step"]) == (1, 1)
    return path


ANYTHING = (
    st.none() | st.booleans() | st.just(10**9) | st.just(-1) | st.floats() | st.text(max_size=3)
    | st.lists(st.none(), max_size=2) | st.just({}) | st.just({"a": None})
)  # fmt: skip


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_facts_that_cannot_be_are_a_sentence(stopped: Path, data: st.DataObject) -> None:
    """Whatever stands in the place of a fact or of an entry of a row, the checksum being right."""
    tensors, facts = read_tensors(stopped / "last.safetensors")
    of_rows = [("rows", 0, key) for key in ("epoch", "lr", "loss", "seconds", "firing_rates")]
    *place, key = data.draw(st.sampled_from([("epoch",), ("step",), ("rows",), ("found",), ("spent",), *of_rows]))
    of: Any = facts
    for inner in place:
        of = of[inner]
    before, value = of[key], data.draw(ANYTHING)
    of[key] = value
    alike = type(value) in (int, float) if type(before) is float else type(value) is type(before)
    said = sentence(lambda: parts_of(tensors, facts, "last.safetensors"))
    assert said is None or ("has impossible content, so it was altered: " in said and "\n" not in said)
    assert alike or said


def sentence(call: Callable[[], object]) -> str | None:
    """What a call is refused with."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda tensors, facts: facts.update(epoch=None), "epoch is None"),
        (
            lambda tensors, facts: facts.update(step=10**9),
            "after epoch 1 and 1000000000 more steps, but the run has",
        ),
        (lambda tensors, facts: facts.update(rows=[{"loss": 1.0}]), "row 1 is not that of epoch 1"),
        (lambda tensors, facts: tensors["totals.loss"].fill_(torch.nan), "the sum of loss is not a finite number"),
        (lambda tensors, facts: tensors.clear(), "after 1 steps it has sums of 0 terms"),
    ],
)
def test_an_altered_checkpoint_ends_in_one_sentence(stopped: Path, tmp_path: Path, spoil: Any, words: str) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    tensors, facts = read_tensors(run / "last.safetensors")
    spoil(tensors, facts)
    (run / "last.safetensors").write_bytes(pack_tensors(tensors, facts))
    assert words in refused("train", "--resume", str(run))


def test_a_sum_that_overflows_is_no_endless_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each term is finite, and so is each step when it is done again with care."""
    monkeypatch.setattr("spikerate.measure.health.gradient_norm", lambda network: torch.tensor(3e38))
    status, _, err = tell("train", *TINY, "--out", str(tmp_path / "run"))
    assert status == 1 and "epoch 1 step 2: the sum of a loss term is not finite, although the term is" in err


@pytest.mark.parametrize("content", ['{"epoch": 1', "[]", '{"loss": 1}', ""])
def test_broken_metrics_are_written_again(stopped: Path, tmp_path: Path, content: str) -> None:
    run = shutil.copytree(stopped, tmp_path / "run")
    (run / "metrics.jsonl").write_text(content)
    status, _, err = tell("train", "--resume", str(run))
    assert status == 0, err
    assert [row["epoch"] for row in RunFolder(run).metrics()] == [1, 2, 3]


# one writer -------------------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused_in_one_sentence(
    processes: Processes, spikerate: Callable[..., Any], stopped: Path, tmp_path: Path
) -> None:
    """While a run trains: its resume, its seed, a new run of the name; readers go on; after a kill the lock is free."""
    run = tmp_path / "all" / "seed0"
    train = ["train", *TINY[:-1], "100000"]
    with sole_writer(tmp_path / "begun"):
        done = spikerate(*train, "--out", str(tmp_path / "begun"))
        assert done.returncode == 2 and done.stderr == f"spikerate: another process is writing the run {tmp_path}/begun: " \
            "wait until it has ended, or stop it\n"  # fmt: skip
    pid = processes.start(*train, "--out", str(run), cwd=tmp_path, out=os.devnull, err=os.devnull)
    try:
        wait_for(run / "metrics.jsonl")
        for command in (["train", "--resume", str(run)], [*train, "--seeds", "2", "--out", str(run.parent)]):
            assert "another process is writing the run" in refused(*command)
        assert "already contains another run" in refused(*train, "--out", str(run))
        for reader in (["report", str(run)], ["eval", str(run)]):
            assert tell(*reader)[0] == 0
    finally:
        os.kill(pid, signal.SIGKILL)
        processes.wait()
    with sole_writer(run):
        pass


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", no_locks)
    said: list[str] = []
    with sole_writer(tmp_path / "run", said.append):
        (line,) = said
    assert "has no locks: make sure that no other process writes into the folder" in line


# the record is checked --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        lambda settings: settings["optim"].update(lr=0.5),
        lambda settings: settings.update(seed=7),
        lambda settings: settings.update(T=2),
    ],
    ids=["lr", "seed", "T"],
)
def test_edited_settings_are_refused_or_noted(run: Path, edit: Callable[[Any], None]) -> None:
    record = json.loads((run / "run.json").read_text())
    edit(record["run"])
    (run / "run.json").write_text(json.dumps(record))
    words = f"{run}/run.json was edited: its settings are not those that the run began with"
    for command in (["train", "--resume", str(run)], ["reproduce", str(run)]):
        assert (
            f"{words}; restore them, or train further with other settings by spikerate train PRESET --init {run}"
            in refused(*command)
        )
    for reader in (["eval", str(run)], ["report", str(run)], ["export", str(run), f"{run}.safetensors"]):
        status, out, _ = tell(*reader)
        assert status == 0 and words in out.replace("note: ", "")
    assert words in (run / "report.html").read_text().replace("&#x2F;", "/")


def test_the_record_of_a_round_is_checked_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert tell("train", *TINY, "--before", "ann:1:0.1", "--out", str(run))[0] == 0
    record = json.loads((run / "round1-ann" / "run.json").read_text())
    record["run"]["optim"]["lr"] = 0.2
    (run / "round1-ann" / "run.json").write_text(json.dumps(record))
    assert "round1-ann/run.json was edited" in refused("train", "--resume", str(run))
    assert f"{run}/round1-ann/run.json was edited" in tell("report", str(run))[1]


def test_other_images_of_the_same_size_are_other_data(tmp_path: Path) -> None:
    """Not the metrics are to blame: `reproduce` and `eval` say that it is the data."""
    images, run = tmp_path / "images", tmp_path / "run"
    for part, name in itertools.product(("train", "val"), "ab"):
        (images / part / name).mkdir(parents=True)
        for k in range(4):
            content = np.random.default_rng(k).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(content).save(images / part / name / f"{k}.bmp")
    command = ["train", "images-esd", "--data", str(images), "--data.size", "8", "--data.workers", "0", "--batch", "4"]
    more = ["--data.validation", "0", "--width", "1", "--T", "1", "--epochs", "1", "--model.stem", "3x3"]
    status, _, err = tell(*command, *more, "--out", str(run))
    assert status == 0, err
    assert tell("eval", str(run))[0] == 0
    victim = images / "val" / "a" / "0.bmp"
    size, times = victim.stat().st_size, (victim.stat().st_atime, victim.stat().st_mtime)
    Image.new("RGB", (8, 8)).save(victim)
    os.utime(victim, times)
    assert victim.stat().st_size == size
    for again in (["eval", str(run)], ["reproduce", str(run)], ["train", "--resume", str(run)]):
        assert "is not the one that" in (said := refused(*again)) and "its checksums differ (contents)" in said
    record = json.loads((run / "run.json").read_text())
    del record["data"]["sha256"]["contents"]  # as an earlier version wrote it
    (run / "run.json").write_text(json.dumps(record))
    assert "has no checksum of the data's contents: they may differ" in tell("eval", str(run))[1]


# what a report leaves out -----------------------------------------------------------------------------------------------


def test_what_a_report_cannot_look_into_is_said(finished: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place, as_nobody(Path(place), finished, "good", "seeds/seed0"):
        runs = Path(place)
        (runs / "hidden").mkdir(mode=0)
        (runs / "seeds" / "seed1").mkdir(mode=0)
        found = gather([runs])
        assert [len(group.runs) for group in found.groups] == [2]
        for folder in ("hidden", "seeds/seed1"):
            assert f"{runs}/{folder} can't be read (Permission denied): a run in it is left out" in found.notes
        with pytest.raises(ValueError, match=r"hidden can't be read \(Permission denied\)"):
            gather([runs / "hidden"])
        for folder in (runs / "hidden", runs / "seeds" / "seed1"):
            folder.chmod(0o700)


@contextlib.contextmanager
def as_nobody(place: Path, run: Path, *names: str) -> Iterator[None]:
    """Without root's right to read everything, in a folder with copies of a run."""
    for name in names:
        shutil.copytree(run, place / name)
    user = os.geteuid()
    if user == 0:
        for file in (place, *place.rglob("*")):
            os.chown(file, 65534, -1)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_name_that_is_not_utf_8_is_said_before_anything_is_read(run: Path) -> None:
    name = os.fsdecode(b"r\xff")
    for command in (["train", *TINY, "--out", name], ["train", *TINY, "--seeds", "2", "--out", name]):
        assert "the name of the run folder r\\xff is not UTF-8: choose another" in refused(*command)
    moved = run.rename(run.with_name(name))
    for command in (["eval", str(moved)], ["train", "--resume", str(moved)], ["report", str(moved)]):
        assert "r\\xff is not UTF-8: choose another" in refused(*command)


def test_what_the_commands_read_of_a_record_is_of_its_kind(run: Path, tmp_path: Path) -> None:
    """Or one sentence says what was altered, also where no report is made."""
    record = json.loads((run / "run.json").read_text())
    for entry, value in (("resumed", 3), ("init", [1]), ("init", {"path": 1}), ("preset", {})):
        (run / "run.json").write_text(json.dumps(record | {entry: value}))
        (run / "last.safetensors").unlink(missing_ok=True)  # or nobody would ask what it started from
        assert f"run.json has an entry {entry} that is no" in (said := refused("train", "--resume", str(run))) or (
            "does not name the weights" in said
        )
    (run / "run.json").write_text(json.dumps(record))
    for content in ("{}", '{"test_accuracy": 0.5, "firing_rate": NaN}', '{"test_accuracy": "high", "firing_rate": 0.1}'):
        (run / "result.json").write_text(content)
        assert "result.json is no result" in refused("report", str(run))
        assert "result.json is no result" in refused("reproduce", str(run))


def test_half_a_cache_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    """But neither one that is being made, nor what a link leads to."""

    def make() -> Any:
        cached(tmp_path, "a", {}, (1,), np.uint8, lambda: iter([torch.zeros(1, dtype=torch.uint8)]), False, untracked)

    make()
    (place,) = tmp_path.iterdir()
    shutil.rmtree(place)
    dead, fresh, other = (tmp_path / f"{prefix}{place.name}-x{k}" for k, prefix in enumerate((".", ".", "")))
    for folder in (dead, fresh, other):
        folder.mkdir()
        (folder / "rows").write_bytes(b"half")
    for folder in (dead, other):
        os.utime(folder / "rows", (0, 0))
    (tmp_path / f".{place.name}-link").symlink_to(other)
    make()
    assert not dead.exists() and fresh.exists() and other.exists() and place.exists()
