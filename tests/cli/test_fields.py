"""Every field of every command, given numbers out of range, wrong kinds and hostile words: one sentence, or right."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
import typing
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from PIL import Image

from spikerate.bench.roofline import Roofline
from spikerate.cli import arguments, plots
from spikerate.cli import commands as performed
from spikerate.cli.arguments import (
    Bare,
    Bench,
    Check,
    Eval,
    Export,
    Fetch,
    Gradient,
    Predict,
    Report,
    Reproduce,
    Resume,
    Show,
    Train,
)
from spikerate.cli.main import main
from spikerate.data import Data
from spikerate.gradients.agreement import Comparison
from spikerate.gradients.temperature import Search
from spikerate.rules import BPTT
from spikerate.runs import presets, record, train
from spikerate.runs.config import Model, Neuron, OwnNetwork, Phase, Round, Run
from spikerate.runs.kinds import PARTS
from spikerate.surrogate import Dspike
from spikerate.system import environment
from spikerate.system.codec import decode, encode, ours_of

TINY = Run(Data("digits", subset=24), Model("vgg11", 1), rule=BPTT(), T=1, epochs=1, batch=8)
FITTING: dict[Any, Callable[[Run], Run]] = {
    Search: lambda run: replace(run, neuron=Neuron(surrogate=Dspike()), batch=32),
}
"""What a run needs besides, where it has the alternative."""

WHOLE = ["-1", "0", "1", str(2**31), str(2**62), "9" * 40, "1" * 5000, "nan", "1.5"]
REAL = ["-1", "0", "1e-300", "1e-30", "1e12", "1e39", "1e300", "-1e39", "nan", "inf", "-inf"]
ROUNDS = [f"{T}:{epochs}:{lr}" for T in ("ann", 1, "9" * 9) for epochs in (1, 10**8) for lr in (0.1, 1e39, "1e-300")]
PHASES = [f"{T}:{share}" for T in (1, "9" * 9) for share in (0.5, 1, "1e-300")]
WORDS = ["a\x1b[2Jb", "two\nlines", "[red]x[/]", "exe\u202egnp", "\udcff", "x" * 300, "/dev/null", "hpu", "-1"]
VALUES = {int: WHOLE, float: REAL, Round: ROUNDS, Phase: PHASES, bool: ["", "x", *WORDS[:1]]}


@dataclass(frozen=True)
class Option:
    """A field on the command line; name is empty where it stands by its place.

    Attributes:
        path: names of the fields that lead to it.
    """

    name: str
    kind: Any
    path: tuple[str, ...]

    @property
    def values(self) -> list[str]:
        kinds = leaves(self.kind)
        lists = [values for kind, values in VALUES.items() if kind in kinds]
        return [value for values in lists or [WORDS] for value in values]

    def args(self, value: str) -> list[str]:
        if not self.name:
            return [value]
        if bool in leaves(self.kind) and not value:
            return [self.name]
        several = typing.get_origin(self.kind) is tuple or tuple in map(typing.get_origin, typing.get_args(self.kind))
        return [self.name, value, value] if several and not value.startswith("-") else [f"{self.name}={value}"]


def leaves(kind: Any) -> set[Any]:
    """The plain types of a hint: those in unions, tuples and annotations too."""
    inside = typing.get_args(kind) if typing.get_origin(kind) is not Literal else ()
    return {leaf for one in inside if isinstance(one, type) or typing.get_origin(one) for leaf in leaves(one)} or {kind}


def hints(kind: type) -> dict[str, Any]:
    of_all = typing.get_type_hints(kind, include_extras=True)
    return {field.name: of_all[field.name] for field in dataclasses.fields(kind)}


def options(kind: type, value: Any = None, prefix: str = "", path: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every field of a command, and those of the dataclasses in it, by their values or defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, hint in hints(kind).items():
        own = getattr(value, name) if value is not None else defaults[name]
        notes = [str(note) for note in typing.get_args(hint)[1:]] if typing.get_origin(hint) is Annotated else []
        whole = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(own) and not isinstance(own, type):
            inner = prefix if any("name=''" in note for note in notes) else f"{whole}."
            yield from options(type(own), own, inner, (*path, name))
        elif not (own is None and any(map(dataclasses.is_dataclass, typing.get_args(hint)))):  # which is an alternative
            yield Option("" if any("POSITIONAL" in note.upper() for note in notes) else f"--{whole}", hint, (*path, name))


def with_alternatives(run: Run, value: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Run]]:
    """The run with every alternative at every place that has several, and the path of the place."""
    value = run if value is None else value
    for name, hint in hints(type(value)).items():
        own, place = getattr(value, name), (*path, name)
        hint = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
        union = typing.get_origin(hint) in (types.UnionType, typing.Union)
        for kind in typing.get_args(hint) if union else ours_of(hint) if inspect.isabstract(hint) else ():
            if dataclasses.is_dataclass(kind) and not isinstance(own, typing.cast(type, kind)) and kind is not OwnNetwork:
                other = replaced(FITTING.get(kind, lambda run: run)(run), place, kind())
                yield place, other
                yield from with_alternatives(other, functools.reduce(getattr, place, other), place)
        if dataclasses.is_dataclass(own):
            yield from with_alternatives(run, own, place)


def alternatives() -> list[tuple[tuple[str, ...], Run]]:
    """Each kind of part once."""
    kinds = {type(functools.reduce(getattr, place, run)): (place, run) for place, run in with_alternatives(TINY)}
    return list(kinds.values())


def replaced(value: Any, path: tuple[str, ...], new: Any) -> Any:
    if not path:
        return new
    return replace(value, **{path[0]: replaced(getattr(value, path[0]), path[1:], new)})


OTHERS: dict[type, list[str]] = {
    Resume: ["train", "--resume", "run"],
    Reproduce: ["reproduce", "run"],
    Eval: ["eval", "run"],
    Report: ["report", "run"],
    Predict: ["predict", "run", "picture.png"],
    Export: ["export", "run", "new.safetensors"],
    Gradient: ["gradient", "probe"],
    Check: ["check", "probe"],
    Bench: ["bench"],
    Fetch: ["fetch", "mnist", "there"],
    Show: ["show", "probe"],
    Bare: ["list"],
}
"""A command that is right -> its words."""


def commands() -> Iterator[tuple[list[str], Option]]:
    """Every field of every command, and the words that it is given to."""
    yield from ((["train", "probe"], option) for option in options(Train, Train(TINY)))
    yield from ((["train", "probe"], Option(name, str, ("run",))) for name in PARTS)
    for k, (place, run) in enumerate(alternatives()):
        inside = (option for option in options(Train, Train(run)) if option.path[1 : 1 + len(place)] == place)
        yield from ((["train", f"probe{k}"], option) for option in inside)
    for kind, words in OTHERS.items():
        yield from ((words, option) for option in options(kind))


def line(words: list[str], option: Option, value: str) -> list[str]:
    """The words with the field's value."""
    if option.name == "--resume":
        return ["train", f"--resume={value}"]
    if option.name:
        return [*words, *option.args(value)]
    place = {"file": 2, "files": 2, "to": 2}.get(option.path[-1], 1)
    return [*words[:place], value, *words[place + 1 :]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run; whatever is slow or far away is cut short."""
    folder = tmp_path_factory.mktemp("fields")
    runs = {"probe": TINY} | {f"probe{k}": run for k, (_, run) in enumerate(alternatives())}
    whole = performed.measure_gradients

    def few(network: Any, data: Any, run: Any, compare: Comparison, *rest: Any) -> Any:
        compare = replace(compare, samples=min(2, compare.samples), directions=min(1, compare.directions))
        return whole(network, data, run, compare, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, run in runs.items():
            patch.setitem(presets.PRESETS, name, replace(presets.PRESETS["digits-bptt"], run=run))
        patch.setattr(environment, "source", functools.cache(environment.source))
        patch.setattr(environment, "card", functools.cache(environment.card))
        patch.setattr(record, "write_whole", lambda path, content: path.write_bytes(content))
        patch.setattr(train, "compiler", lambda run, device, say: lambda rule: rule)
        patch.setattr(performed, "measure_gradients", few)
        patch.setattr(performed, "measure_cells", lambda *of: [])
        patch.setattr(performed, "roofline", lambda *of: Roofline(1.0, 1.0))
        patch.setattr(plots, "draw_bench", lambda *of: None)
        patch.setattr(performed, "fetch", lambda source, to, bar: to)
        assert main(["train", "probe", "--out", "run"]) == 0
        Image.new("L", (8, 8)).save("picture.png")
        yield folder


def check(words: list[str], told: pytest.CaptureFixture[str]) -> None:
    """One sentence and status 2 (1 for what is found in training), or right; nothing that could steer a terminal."""
    told.readouterr()
    status = main(words)
    out, err = told.readouterr()
    seen = {c for c in out + err if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}
    assert not seen, (words, seen)
    if status:
        assert status == 2 or (status == 1 and "finite" in err), (words, status, err)
        assert err.startswith("spikerate: ") and err.count("\n") == 1 and "Error(" not in err, (words, err)
        assert not any(f"Unrecognized options: {word.partition('=')[0]}" in err for word in words if word[:2] == "--"), err


@pytest.mark.parametrize("number", range(2))
def test_every_field_on_the_command_line(number: int, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    right = [["train", "probe"], *OTHERS.values()]
    for words in right[number::2]:
        assert main(words) == 0, (words, capfd.readouterr().err)
    given = [
        line(words, option, value)
        for words, option in commands()
        for value in (option.values if words[0] not in ("train", "gradient", "reproduce", "bench") else option.values[-1:])
    ]
    for words in given[number::2]:
        check(words, capfd)


JSON = [
    None,
    True,
    -1,
    0,
    1,
    1.5,
    2**31,
    2**62,
    10**40,
    *map(float, REAL),
    "x",
    "a\x1b[2Jb",
    "",
    [],
    [[[]]],
    {},
    {"type": "Run"},
]


@pytest.mark.parametrize("number", range(2))
def test_every_field_of_a_run_that_a_file_tells(
    number: int, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bases = [((), TINY), *alternatives()]
    fields = [
        (run, option.path[1:])
        for at, run in bases
        for option in options(Train, Train(run))
        if option.path[0] == "run" and option.path[1 : 1 + len(at)] == at
    ]
    monkeypatch.setattr(arguments, "parse", lambda kind, rest, prog, default, *more: default)
    for run, path in fields[number::2]:
        numbers: list[tuple[float, Run]] = []
        for value in JSON:
            told = encode(run)
            functools.reduce(lambda part, name: part[name], path[:-1], told)[path[-1]] = value
            with contextlib.suppress(ValueError):
                changed = decode(Run, told)
                numbers += [(value, changed)] if type(value) in (int, float) else []
        numbers.sort(key=lambda pair: pair[0])
        for _, changed in (*numbers[:1], *numbers[-1:]):  # the ends of the range train, or say in a sentence why not
            presets.PRESETS["changed"] = replace(presets.PRESETS["probe"], run=changed)
            check(["train", "changed"], capfd)
