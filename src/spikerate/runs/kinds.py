"""The kinds of optimiser, schedule, rule, loss, neuron and surrogate by name, as the command line chooses them."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spikerate.losses import TET, CrossEntropy, SelfDistillation
from spikerate.rules import BPTT, OTTT, SLTT, RateBP
from spikerate.runs.config import Neuron, Rectified, Run
from spikerate.runs.optim import SGD, AdamW, Muon
from spikerate.runs.schedule import Constant, Cosine, Linear, OneCycle, Step
from spikerate.surrogate import ATan, Dspike, FastSigmoid, Rectangular, Sigmoid, Triangular


@dataclass(frozen=True)
class Part:
    """A part of a run of which there are several kinds.

    Attributes:
        field: name of the field of the run, or "part.field" for a field of one of its parts.
        kinds: name -> class, which needs no arguments.
    """

    field: str
    kinds: Mapping[str, type]

    def kind(self, name: str) -> type:
        """The class of that name.

        Raises:
            ValueError: the name is unknown; the message lists all names.
        """
        if name in self.kinds:
            return self.kinds[name]
        near = difflib.get_close_matches(name, self.kinds, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no {self.field} {name!r}: {hint}give one of {', '.join(self.kinds)}")


PARTS = {
    "--optim": Part("optim", {"sgd": SGD, "adamw": AdamW, "muon": Muon}),
    "--schedule": Part(
        "optim.schedule",
        {"cosine": Cosine, "one-cycle": OneCycle, "linear": Linear, "step": Step, "constant": Constant},
    ),
    "--rule": Part("rule", {"rate": RateBP, "bptt": BPTT, "sltt": SLTT, "ottt": OTTT}),
    "--loss": Part("loss", {"cross-entropy": CrossEntropy, "esd": SelfDistillation, "tet": TET}),
    "--neuron": Part("neuron", {"lif": Neuron, "relu": Rectified}),
    "--surrogate": Part(
        "neuron.surrogate",
        {
            "sigmoid": Sigmoid,
            "atan": ATan,
            "triangular": Triangular,
            "rectangular": Rectangular,
            "fast-sigmoid": FastSigmoid,
            "dspike": Dspike,
        },
    ),
}
"""Option of the command line -> the part that it chooses the kind of; a part of a part comes after it."""


def in_words() -> str:
    """The options and their kinds as one sentence."""
    return "Kinds of parts: " + "; ".join(f"{option} {'|'.join(part.kinds)}" for option, part in PARTS.items()) + "."


def take_kinds(args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The kinds that a command line chooses, option -> name, and its other words.

    Raises:
        ValueError: an option has no value, or its value is unknown.
    """
    options = {option: option for option in PARTS} | {f"--{part.field}": option for option, part in PARTS.items()}
    chosen: dict[str, str] = {}
    rest: list[str] = []
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if option not in options:
            rest.append(word)
            continue
        part = PARTS[options[option]]
        name = value if equals else next(words, "")
        if not name or name.startswith("-"):
            raise ValueError(f"{option} has no value: give one of {', '.join(part.kinds)}")
        part.kind(name)
        chosen[options[option]] = name
    return chosen, rest


def with_kinds(run: Run, chosen: Mapping[str, str]) -> Run:
    """A run with parts of other kinds, each as that kind is by default.

    What both kinds inherit from a common class is kept, as the schedule of the optimisers. A part that has the kind already
    stays as it is. An ANN gets T = 1, a surrogate other than Dspike no search for a temperature, and OTTT the decay of the
    neurons.

    Args:
        chosen: option of `PARTS` -> name of a kind.

    Raises:
        ValueError: a name is unknown, the kinds don't go together, or a part of a part is not there.
    """
    fields: dict[str, Any] = {name: getattr(run, name) for name in ("optim", "rule", "loss", "neuron", "search", "T")}
    for option, part in PARTS.items():
        if option not in chosen:
            continue
        kind = part.kind(chosen[option])
        outer, _, inner = part.field.partition(".")
        if not inner:
            fields[outer] = _as_kind(fields[outer], kind)
        elif inner in {field.name for field in dataclasses.fields(fields[outer])}:
            fields[outer] = replace(fields[outer], **{inner: _as_kind(getattr(fields[outer], inner), kind)})
        else:
            raise ValueError(f"{option} {chosen[option]}: a {outer} of kind {type(fields[outer]).__name__} has no {inner}")
    if isinstance(fields["neuron"], Rectified):
        fields |= {"T": 1, "search": None}
    elif not isinstance(fields["neuron"].surrogate, Dspike):
        fields["search"] = None
    if "--rule" in chosen and isinstance(fields["rule"], OTTT) and isinstance(fields["neuron"], Neuron):
        fields["rule"] = replace(fields["rule"], decay=fields["neuron"].decay)
    return replace(run, **fields) if chosen else run


def _as_kind(value: Any, kind: type) -> Any:
    """A new value of that kind, which has what both inherit; the value itself where it is of that kind."""
    if type(value) is kind:
        return value
    own = inspect.get_annotations(kind).keys() | inspect.get_annotations(type(value)).keys()
    others = {field.name for field in dataclasses.fields(value)}
    kept = {f.name: getattr(value, f.name) for f in dataclasses.fields(kind) if f.name in others - own}
    return kind(**kept)
