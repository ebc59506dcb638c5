"""The parts of a run by kind, as the command line chooses them: ours by name, the user's own by "package.module:name"."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spikerate.data import DataReader
from spikerate.losses import TET, CrossEntropy, Loss, SelfDistillation
from spikerate.models import NETWORKS
from spikerate.neuron import NeuronSettings
from spikerate.rules import BPTT, OTTT, SLTT, RateBP, Rule
from spikerate.runs.config import (
    AdaptiveNeuron,
    IntegerNeuron,
    LearningNeuron,
    Model,
    Neuron,
    OwnNetwork,
    Rectified,
    Run,
    SynapticNeuron,
    adaptable,
)
from spikerate.runs.optim import SGD, AdamW, Muon, OptimizerFactory
from spikerate.runs.schedule import Constant, Cosine, Linear, OneCycle, Schedule, Step
from spikerate.surrogate import ATan, Dspike, FastSigmoid, Rectangular, Sigmoid, Surrogate, Triangular
from spikerate.system.codec import Own

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
"""package.module:name"""


@dataclass(frozen=True)
class Part:
    """A part of a run of which there are several kinds.

    Attributes:
        field: name of the field of the run, or "part.field" for a field of one of its parts.
        base: the class that all kinds inherit from, including the user's own.
        kinds: name -> class, which needs no arguments.
    """

    field: str
    base: type
    kinds: Mapping[str, type]

    def value(self, name: str) -> Any:
        """The class of that name, or what the user's own path "package.module:name" leads to, which is imported.

        Raises:
            ValueError: the name is unknown (the message lists all names), can't be imported, or is another kind of part.
        """
        if ":" in name:
            return self._checked(name, imported(name))
        if name in self.kinds:
            return self.kinds[name]
        near = difflib.get_close_matches(name, self.kinds, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        own = f"{', '.join(self.kinds)}, or package.module:name" if self.kinds else "package.module:name"
        raise ValueError(f"there is no {self.field} {name!r}: {hint}give one of {own}")

    def _checked(self, path: str, found: Any) -> Any:
        kind = found if isinstance(found, type) else type(found)
        if not issubclass(kind, self.base):
            raise ValueError(f"{path} does not inherit from {self.base.__name__}, as a {self.field} does")
        if not dataclasses.is_dataclass(kind):
            raise ValueError(f"{path} is no dataclass: put @dataclass(frozen=True) before the class")
        return found


class _Networks(Part):
    """The networks: any function or dataclass that is called like one."""

    def _checked(self, path: str, found: Any) -> Any:
        if isinstance(found, type) and not dataclasses.is_dataclass(found):
            raise ValueError(f"{path} is a class: give a function (num_classes, in_shape, neuron) -> module, or a dataclass")
        if not callable(found):
            raise ValueError(
                f"{path} is a {type(found).__name__}: give a function (num_classes, in_shape, neuron) -> module"
            )
        return made(path, found) if isinstance(found, type) else found


def imported(path: str) -> Any:
    """What the user's own "package.module:name" leads to; the current folder is looked into first.

    Raises:
        ValueError: the path is none, its module can't be imported, or has no such name.
    """
    if not _PATH.fullmatch(path):
        raise ValueError(f"{path!r} is no path to code of your own: give package.module:name")
    module, _, name = path.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever the user's module does
        raise ValueError(f"{path} can't be imported: {type(error).__name__}: {' '.join(str(error).split())}") from error
    for part in name.split("."):
        if part not in dir(found):
            near = difflib.get_close_matches(part, dir(found), 1)
            raise ValueError(
                f"{path} can't be imported: there is no {part}" + (f", did you mean {near[0]}?" if near else "")
            )
        found = getattr(found, part)
    return found


def made(path: str, kind: Any, **fields: Any) -> Any:
    """A value of a class, as it is by default.

    Raises:
        ValueError: it has a field without default, or lacks a method.
    """
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"{path} can't be made ({error}): give each field a default, and write each method") from error


PARTS = {
    "--optim": Part("optim", OptimizerFactory, {"sgd": SGD, "adamw": AdamW, "muon": Muon}),
    "--schedule": Part(
        "optim.schedule",
        Schedule,
        {"cosine": Cosine, "one-cycle": OneCycle, "linear": Linear, "step": Step, "constant": Constant},
    ),
    "--rule": Part("rule", Rule, {"rate": RateBP, "bptt": BPTT, "sltt": SLTT, "ottt": OTTT}),
    "--loss": Part("loss", Loss, {"cross-entropy": CrossEntropy, "esd": SelfDistillation, "tet": TET}),
    "--neuron": Part(
        "neuron",
        NeuronSettings,
        {
            "lif": Neuron,
            "plif": LearningNeuron,
            "synaptic": SynapticNeuron,
            "alif": AdaptiveNeuron,
            "ilif": IntegerNeuron,
            "relu": Rectified,
        },
    ),
    "--surrogate": Part(
        "neuron.surrogate",
        Surrogate,
        {
            "sigmoid": Sigmoid,
            "atan": ATan,
            "triangular": Triangular,
            "rectangular": Rectangular,
            "fast-sigmoid": FastSigmoid,
            "dspike": Dspike,
        },
    ),
    "--network": _Networks("model", object, dict.fromkeys(NETWORKS, Model)),
    "--reader": Part("data.reader", DataReader, {}),
}
"""Option of the command line -> the part that it chooses the kind of; a part of a part comes after it."""


def in_words() -> str:
    """The options and their kinds as text."""
    ours = "; ".join(f"{option} {'|'.join(part.kinds)}" for option, part in PARTS.items() if part.kinds)
    return f"Kinds of parts: {ours}. Each of them, and --reader, also accepts your own package.module:name."


def take_kinds(args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The kinds that a command line chooses, option -> name, and its other words.

    Raises:
        ValueError: an option has no value.
    """
    options = {option: option for option in PARTS} | {f"--{part.field}": option for option, part in PARTS.items()}
    chosen: dict[str, str] = {}
    rest: list[str] = []
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if option not in options or option == "--model":  # which has been the name alone
            rest.append(word)
            continue
        part = PARTS[options[option]]
        name = value if equals else next(words, "")
        if not name or name.startswith("-"):
            ours = f"one of {', '.join(part.kinds)}, or " if part.kinds else ""
            raise ValueError(f"{option} has no value: give {ours}package.module:name of your own")
        chosen[options[option]] = name
    return chosen, rest


def take_own(args: Sequence[str]) -> tuple[Own, list[str]]:
    """The user's own code that a command line names again, for a run that there is, and the rest of its words.

    Raises:
        ValueError: an option has no value, or names a kind of ours, or what can't be imported.
    """
    chosen, rest = take_kinds(args)
    return own_again(chosen), rest


def own_again(chosen: Mapping[str, str]) -> Own:
    """The user's own code that is named again for a run; raises `ValueError` where a kind of ours is named."""
    for option, name in chosen.items():
        if ":" not in name:
            raise ValueError(f"{option} {name}: a run has its own parts; only code of your own is named again here")
    return own_of(chosen)


def own_of(chosen: Mapping[str, str]) -> Own:
    """The user's own code among the kinds that a command line has chosen."""
    found = {name: PARTS[option].value(name) for option, name in chosen.items() if ":" in name}
    return Own.of(*(made(name, kind) if isinstance(kind, type) else kind for name, kind in found.items()))


def with_kinds(run: Run, chosen: Mapping[str, str]) -> Run:
    """A run with parts of other kinds, each as that kind is by default.

    What both kinds inherit from a common class is kept, as the schedule of the optimisers. A part that has the kind already
    stays as it is. An ANN gets T = 1, neurons without a temperature no search for it, and OTTT the decay of the neurons.

    Args:
        chosen: option of `PARTS` -> name of a kind, or path to the user's own code.

    Raises:
        ValueError: a name is unknown, code can't be imported, the kinds don't go together, or a part of a part is not there.
    """
    if not chosen:
        return run
    fields: dict[str, Any] = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
    for option, part in PARTS.items():
        if option not in chosen:
            continue
        name = chosen[option]
        found = part.value(name)
        outer, _, inner = part.field.partition(".")
        if option == "--network":
            fields[outer] = _network(fields[outer], name, found)
        elif option == "--reader":
            fields[outer] = replace(fields[outer], name="own", reader=_as_kind(name, fields[outer].reader, found))
        elif not inner:
            fields[outer] = _as_kind(name, fields[outer], found)
        elif inner in {field.name for field in dataclasses.fields(fields[outer])}:
            fields[outer] = replace(fields[outer], **{inner: _as_kind(name, getattr(fields[outer], inner), found)})
        else:
            raise ValueError(f"{option} {name}: a {outer} of kind {type(fields[outer]).__name__} has no {inner}")
    if not fields["neuron"].spiking:
        fields |= {"T": 1, "curriculum": (), "search": None}
    elif fields["search"] is not None and not adaptable(fields["neuron"]):
        fields["search"] = None
    if "--rule" in chosen and isinstance(fields["rule"], OTTT) and isinstance(fields["neuron"], Neuron):
        fields["rule"] = replace(fields["rule"], decay=fields["neuron"].decay)
    return replace(run, **fields)


def _network(model: Model | OwnNetwork, name: str, found: Any) -> Model | OwnNetwork:
    if ":" in name:
        return OwnNetwork(found, model.residual_branches)
    width = model.width if isinstance(model, Model) else Model.width
    stem = model.stem if isinstance(model, Model) and model.stem in NETWORKS[name].stems else "3x3"
    sizes = model.sizes if isinstance(model, Model) else {}
    kept = {size: value for size, value in sizes.items() if size in NETWORKS[name].sizes}
    return Model(name, width, stem, model.residual_branches, **kept)


def _as_kind(name: str, value: Any, found: Any) -> Any:
    """A new value of a class, which has what both inherit; the value itself where it is of that class.

    Args:
        name: of the class on the command line.
        found: the class; or a value of the user's own, which is taken as it is.
    """
    if not isinstance(found, type):
        return found
    if type(value) is found:
        return value
    own = inspect.get_annotations(found).keys() | inspect.get_annotations(type(value)).keys()
    others = {field.name for field in dataclasses.fields(value)}
    fields: Any = dataclasses.fields(found)
    kept = {f.name: getattr(value, f.name) for f in fields if f.name in others - own}
    return made(name, found, **kept)
