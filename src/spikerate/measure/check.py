"""A network gone through once before it is trained: what each operation is to the rules, and what is wrong with it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from spikerate import autograd
from spikerate.measure.health import stuck
from spikerate.measure.meter import Around
from spikerate.readout import Readout
from spikerate.rules import BPTT, OTTT, SLTT, RateBP, Rule, check_input
from spikerate.signal import Feedback, Neuron, Normalization, PerStep, RuleRefused, Signal, is_constant, per_step
from spikerate.system.memory import is_out_of_memory

VERBS = {
    "affine": "commutes with the mean over time, so the rate goes through it like each step: exact",
    "product": "of two signals, step by step; the gradient of each takes the rate of the other: exact where one is constant",
    "nonlinear": "is applied to each step; the gradient is taken at the rate: exact where all steps are the same",
    "normalize": "batch norm in training: by the statistics of the batch, whose variance over time counts as a constant",
    "fire": "spikes; one gain, the mean over the steps, stands for the slopes of all: exact where all currents are the same",
}
"""What each verb is under `RateBP`."""
_Fault = Callable[[str, PerStep, Sequence[Tensor]], list[str]]
"""(layer and operation, its function, trains of its operands) -> sentences if it is not what it is declared to be."""
_FAILURES = (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, LookupError)
"""What the code of a network may raise; other errors are no finding."""
_ROUNDING = 0.03
"""Largest difference by rounding, in bfloat16 too, relative to the largest value."""
_TRIED = 500
"""Spikes of a step that tell whether membranes leak."""


@dataclass(frozen=True)
class Row:
    """One operation of a network.

    Attributes:
        layer: path of the module in whose `forward` it is; "" for the network itself.
        operation: name of the function, or class of the neuron.
        verb: "affine", "product", "nonlinear", "normalize" or "fire".
        exact: whether its gradient under `RateBP` is exact, given that of the rate behind it; False where there is none,
            since that rule refuses the network.
        batch: whether what a sample becomes depends on the others of its batch (batch norm in training).
        shape: of the output, for one sample.
        parameters: number of elements of the module's own parameters, with those that spikes come back through; 0 where an
            earlier row has them.
        macs: multiply-accumulates of one step of one sample, dense.
        rate: spikes per neuron and step; None for all but neurons.
    """

    layer: str
    operation: str
    verb: str
    exact: bool
    batch: bool
    shape: tuple[int, ...]
    parameters: int
    macs: int
    rate: float | None = None


@dataclass(frozen=True)
class Check:
    """What `check` found; as text it is a table, the faults, and a summary.

    Attributes:
        rows: the operations in the order of a training step, up to the first that fails.
        faults: sentences, each about something to mend before training.
        notes: sentences about what may be right, and is good to know.
        T: number of time steps.
        parameters: number of elements of all parameters.
        refused: name of a rule that a layer has no gradient under -> which layer, and why.
    """

    rows: tuple[Row, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    T: int
    parameters: int
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    @property
    def exact(self) -> bool:
        """Whether the gradient of `RateBP` is that of `BPTT` for a loss on the rate: all operations are exact."""
        return all(row.exact for row in self.rows)

    @property
    def summary(self) -> str:
        """One sentence."""
        if self.faults:
            many = f"{len(self.faults)} faults" if len(self.faults) > 1 else "one fault"
            return f"not ready to train: {many} in the {len(self.rows)} operations that were reached"
        rough = sum(not row.exact for row in self.rows)
        by = f" by {_taken(self.refused)}" if self.refused else ""
        gradient = "exact" if self.exact else f"exact in {len(self.rows) - rough} and approximate in {rough}"
        told = "" if "RateBP" in self.refused else f"the gradient under RateBP is {gradient} at T = {self.T}; "
        batch = "depends" if any(row.batch for row in self.rows) else "does not depend"
        return (
            f"ready to train{by}: {len(self.rows)} operations, {self.parameters:,} parameters, "
            f"{sum(row.macs for row in self.rows):,} multiply-accumulates a step and sample; "
            f"{told}the output {batch} on batch-mates in training, and does not in evaluation"
        )

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        return "layer", "operation", "verb", "RateBP", "batch", "output", "parameters", "MACs", "fires"

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """The rows as text."""
        return [
            (
                row.layer or "the network",
                row.operation,
                row.verb,
                "-" if "RateBP" in self.refused else "exact" if row.exact else "approximate",
                "yes" if row.batch else "",
                "x".join(map(str, row.shape)) or "1",
                f"{row.parameters:,}" if row.parameters else "",
                f"{row.macs:,}" if row.macs else "",
                "" if row.rate is None else f"{row.rate:.3f}",
            )
            for row in self.rows
        ]

    @property
    def told(self) -> list[str]:
        """What stands below the table: the verbs, faults and notes, and the summary last."""
        met = set() if "RateBP" in self.refused else {row.verb for row in self.rows}
        verbs = [f"{verb}: {what}" for verb, what in VERBS.items() if verb in met]
        return [*verbs, *(f"FAULT: {fault}" for fault in self.faults), *(f"note: {n}" for n in self.notes), self.summary]

    @property
    def lines(self) -> list[str]:
        """All of it as text."""
        table = [self.header, *self.cells]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        shown = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
        return [*shown, "", *self.told]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def check(network: nn.Module, x: Tensor) -> Check:
    """Go through a network with an input, and tell what it is to the training rules and what is wrong with it.

    A copy of the network runs, so neither its weights nor its statistics change. Found are, as faults: an operation without
    a rule, and whatever else stops the network; operations and neurons of your own in which time steps get into the batch
    (membranes that leak from sample to sample), samples depend on each other, or steps on later ones; outputs that depend
    on the rest of the batch in evaluation; operations declared affine that are not; a network without neurons; parameters
    that `RateBP` gives no gradient; and neurons that never fire for this input and that no gradient goes through, so that
    they can't learn to. Other silent layers are notes. A rule under which a layer has no gradient, as `Recurrent` has none
    under `RateBP`, is no fault but a property of the network, a note, too; then gradients are looked at under `BPTT`.
    `print(check(network, x))` shows all of it.

    Firing rates are those in training mode, where batch norm uses the statistics of the batch, as in the first step of a
    training.

    Args:
        network: [B, ...] -> logits, called by a rule; on the device of x.
        x: [T, B, ...] as for a rule, floating point. With B = 1 a second sample is made up.

    Raises:
        ValueError: x is no such tensor, or the network no module.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f"the network is a {type(network).__name__}: give a torch.nn.Module")
    check_input(x)
    x = x if x.shape[1] > 1 else _with_batch(x, torch.cat([x[:1] if is_constant(x) else x] * 2, 1))
    ghost = copy.deepcopy(network)
    paths = {module: path for path, module in ghost.named_modules()}
    evaluation, training = Log(paths, probe=True), Log(paths)
    faults: list[str] = []
    learning: dict[str, bool | None] = {}
    refused: dict[str, str] = {}
    with _fixed_seed(x.device):
        try:
            with torch.no_grad():
                BPTT()(recorded(ghost.train(), training), x)
                BPTT()(recorded(ghost.eval(), evaluation), x)
                first, again = (_of_first(ghost, inputs) for inputs in (x, _with_other_mates(x)))
            faults += _dependence(evaluation, first, again)
            learning, refused = _under_rules(ghost.train(), x, paths)
        except _FAILURES as error:
            if is_out_of_memory(error):
                raise
            faults.append(_where(error, paths))
    if not faults and all(row.rate is None for row in training.rows):
        faults.append("it has no neurons, so nothing spikes: use LIF as activation, or spiking(network)")
    silent, notes = _firing(training.rows, learning)
    faults += [*_unreached(learning, "BPTT" if "RateBP" in refused else "RateBP"), *silent]
    rows = [replace(row, exact=row.exact and "RateBP" not in refused) for row in training.rows]
    parameters = sum(p.numel() for p in network.parameters())
    return Check(tuple(rows), tuple(faults), (*_needs(refused), *notes), len(x), parameters, refused)


@dataclass
class Log:
    """What the signals of one pass note down.

    Attributes:
        paths: module -> path in the network.
        probe: whether operations and neurons are tried out on their own, by samples that are changed.
        rows: one for each operation so far.
        leaks: what mixes samples or steps.
        seen: modules whose parameters a row has.
    """

    paths: Mapping[Any, str]
    probe: bool = False
    rows: list[Row] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def note(self, operation: str, verb: str, exact: bool, y: Signal, macs: int = 0, rate: float | None = None) -> str:
        """Add the operation that gave `y`; returns the layer it is in."""
        module = _caller(sys._getframe(), self.paths)
        layer = self.paths.get(module, "")
        whole = isinstance(module, Feedback)  # what spikes come back through has no row of its own
        own = 0 if module is None or layer in self.seen else sum(p.numel() for p in module.parameters(recurse=whole))
        self.seen.add(layer)
        self.rows.append(Row(layer, operation, verb, exact, verb == "normalize", tuple(y.shape[1:]), own, macs, rate))
        return f"{layer or 'the network'} ({operation})"


@dataclass(frozen=True, eq=False)
class Recorded(Around):
    """A signal that notes each operation in a log."""

    plain = (*Signal.plain, "log")

    log: Log = field(kw_only=True)

    def affine(self, f: PerStep, *others: Signal, at_rate: autograd.Layer | None = None) -> Recorded:
        y, macs = _counted(partial(super().affine, f, *others, at_rate=at_rate))
        where = self.log.note(_name(f), "affine", True, y, macs)
        self._probe(where, f, self, *others, fault=_does_not_commute)
        return y

    def product(self, f: PerStep, other: Signal, at_rate: autograd.Product | None = None) -> Recorded:
        y, macs = _counted(partial(super().product, f, other, at_rate))
        where = self.log.note(_name(f), "product", self.constant or other.constant or self.T == 1, y, macs)
        self._probe(where, f, self, other, fault=_is_no_product)
        return y

    def nonlinear(self, f: PerStep, at_rate: autograd.SampleNorm | None = None) -> Recorded:
        y, macs = _counted(partial(super().nonlinear, f, at_rate))
        where = self.log.note(_name(f), "nonlinear", self.constant or self.T == 1, y, macs)
        self._probe(where, f, self)
        return y

    def normalize(self, norm: Normalization) -> Recorded:
        y = super().normalize(norm)
        self.log.note("batch_norm", "normalize", self.constant or self.T == 1, y)
        return y

    def fire(self, neuron: Neuron) -> Recorded:
        y, macs = _counted(partial(super().fire, neuron)) if isinstance(neuron, Feedback) else (super().fire(neuron), 0)
        rate = None if isinstance(neuron, Readout) else float((y.train != 0).float().mean())
        where = self.log.note(type(neuron).__name__, "fire", self.constant or self.T == 1, y, macs, rate)
        if self.log.probe:
            self.log.leaks += _leaks_of_neuron(where, neuron, self.expanded())
        return y

    def fired(self, neuron: Neuron, spikes: Signal) -> None:
        """Nothing: `fire` notes it."""

    def _probe(self, where: str, f: PerStep, *operands: Signal, fault: _Fault = lambda *_: []) -> None:
        if self.log.probe:
            trains = [operand.expanded() for operand in operands]
            self.log.leaks += _leaks(where, f, trains) or fault(where, f, trains)


def recorded(network: Callable[[Signal], Any], log: Log) -> Callable[[Signal], Any]:
    """The network; as it runs, each operation on a signal is noted in the log."""

    def run(x: Signal) -> Any:
        output = network(Recorded(x.train, x.constant, x.T, x.tape, inner=x, log=log))
        return pytree.tree_map(lambda y: y.inner if isinstance(y, Recorded) else y, output, is_leaf=_is_signal)

    return run


def _counted(operation: Callable[[], Any]) -> tuple[Any, int]:
    """The signal that an operation returns, and the multiply-accumulates that a step of a sample took."""
    with FlopCounterMode(display=False) as counter:
        y = operation()
    return y, counter.get_total_flops() // 2 // y.train.shape[:2].numel()


def _is_signal(y: Any) -> bool:
    return isinstance(y, Signal)


def _caller(frame: FrameType | None, paths: Mapping[Any, str]) -> Any:
    """The innermost module of the network whose method is running; None if there is none."""
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner in paths:
            return owner
        frame = frame.f_back
    return None


def _name(f: PerStep) -> str:
    """What an operation is called: the function that it hands its tensors to, or the rule that has made it."""
    cells = [cell.cell_contents for cell in getattr(f, "__closure__", None) or ()]
    called = [value for value in cells if callable(value) and getattr(value, "__name__", "<lambda>") != "<lambda>"]
    return str(called[0].__name__ if called else f.__qualname__.partition(".")[0].strip("_"))


def _where(error: BaseException, paths: Mapping[Any, str]) -> str:
    """The message of an error in one line, and the module in which it came up."""
    module, trace = None, error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        module = owner if isinstance(owner, nn.Module) and owner in paths else module
        trace = trace.tb_next
    at = "the network" if module is None else f"{paths[module] or 'the network'} ({type(module).__name__})"
    kind = "" if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: "
    return f"{at}: {kind}{' '.join(str(error).split())}"


# Whether samples and steps are kept apart. ------------------------------------------------------------------------------


def _leaks(where: str, f: PerStep, trains: Sequence[Tensor]) -> list[str]:
    """A sentence if an operation does not treat each step of each sample by itself; it is tried with other numbers."""
    other_sample, other_step, both = _reach(partial(per_step, f), trains)
    if both or (other_sample and other_step):
        return [
            f"{where} mixes time steps into the batch: one step of one sample changes other steps of other samples. It gets "
            "[T x B, ...], where each row is a step of a sample, so a reshape that takes rows of one sample for those of "
            "another leaks its state: leave axis 0 as it is"
        ]
    if other_sample:
        return [f"{where} mixes the samples of a batch, so the output for one depends on the others: leave axis 0 as it is"]
    if other_step:
        return [f"{where} mixes time steps, which no rule expects outside of a neuron: leave axis 0 as it is"]
    return []


def _does_not_commute(where: str, f: PerStep, trains: Sequence[Tensor]) -> list[str]:
    """A sentence if an affine operation is none."""
    drawn = [_drawn(train) for train in trains]
    steps, rate = per_step(f, *drawn), f(*(train.mean(0) for train in drawn))
    if not _differ(steps.mean(0), rate, steps):
        return []
    return [
        f"{where} is declared affine and does not commute with the mean over time, so its rate would be wrong: make it "
        'operation("nonlinear"), or operation("product") if it is a product of signals'
    ]


def _is_no_product(where: str, f: PerStep, trains: Sequence[Tensor]) -> list[str]:
    """A sentence if a product of two signals is not linear in each of them."""
    a, b = (train[0] for train in trains)
    c, d = _drawn(a), _drawn(b)
    a, b = _drawn(a), _drawn(b)
    whole = f(a + c, b + d)
    if not _differ(whole, f(a, b) + f(c, b) + f(a, d) + f(c, d), whole):
        return []
    return [
        f"{where} is declared a product and is not linear in each of its two signals, so its gradient under RateBP would be "
        "wrong: leave what is nonlinear out of it"
    ]


def _differ(one: Tensor, other: Tensor, scale: Tensor) -> bool:
    """Whether two results differ by more than rounding; what is not finite tells nothing."""
    return bool((one - other).abs().max() > _ROUNDING * scale.abs().max())


def _leaks_of_neuron(where: str, neuron: Neuron, currents: Tensor) -> list[str]:
    """A sentence if a neuron layer lets one sample change another, or a step an earlier one."""
    other_sample, earlier, both = _reach(neuron.spikes, [currents], later=True)
    if other_sample or both:
        return [
            f"{where}: membranes leak between samples, since the current of one sample changes the spikes of another: keep "
            "the state of each sample by itself, [B, ...]"
        ]
    if earlier:
        return [f"{where}: spikes depend on currents of later steps: let step t use steps up to t only"]
    return []


def _reach(f: Callable[..., Tensor], trains: Sequence[Tensor], later: bool = False) -> tuple[bool, bool, bool]:
    """Whether one step of one sample changes: other samples at that step; other steps of it; other steps of others.

    Args:
        f: trains [T, B, ...] -> [T, B, ...].
        trains: of the shape and type of the operands; their values are not used.
        later: whether changes of later steps of the same sample are expected.
    """
    T, B = trains[0].shape[:2]
    steps, samples = torch.arange(T), torch.arange(B)
    found = torch.zeros(3, dtype=torch.bool)
    # A spike tells little of a membrane, so small layers of neurons are tried several times.
    for t, b in ((0, 0), (T - 1, B - 1)) * (max(1, _TRIED // trains[0][0].numel()) if later else 1):
        before = [_drawn(train) for train in trains]
        after = [train.clone() for train in before]
        for train in after:
            train[t, b] = _drawn(train[t, b])
        with _fixed_seed(trains[0].device):
            one = f(*before)
        with _fixed_seed(trains[0].device):
            other = f(*after)
        changed = ~torch.isclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True).cpu().reshape(T, B, -1).all(2)
        of_sample = changed[steps < t if later else steps != t, b]
        found |= torch.stack(
            [part.any() for part in (changed[t, samples != b], of_sample, changed[steps != t][:, samples != b])]
        )
    other_sample, other_step, both = found.tolist()
    return other_sample, other_step, both


def _drawn(like: Tensor) -> Tensor:
    """Numbers from 0.1 to 10, evenly in their logarithm: neurons of all thresholds fire, and their logarithms exist."""
    return 10 ** (2 * torch.rand_like(like) - 1)


def _dependence(evaluation: Log, first: Sequence[Tensor], again: Sequence[Tensor]) -> list[str]:
    """Sentences if outputs depend on the rest of the batch in evaluation mode; those of one sample are given, among others
    and among other ones.
    """
    by_batch = [row.layer or "the network" for row in evaluation.rows if row.verb == "normalize"]
    found = [*evaluation.leaks]
    if by_batch:
        found.append(
            f"{', '.join(by_batch)}: batch norm uses the statistics of the batch in evaluation too, so a prediction depends "
            "on the other samples: leave track_running_stats=True, and call eval()"
        )
    if not found and not all(map(torch.equal, first, again)):
        found.append(
            "the output for a sample depends on the other samples of its batch in evaluation, by something that no signal "
            "goes through: look for .steps, .rate or .train in a forward, and keep the axis of the batch whole"
        )
    return found


def _of_first(network: nn.Module, x: Tensor) -> list[Tensor]:
    """What the first sample of a batch becomes, with the same random numbers each time."""
    with _fixed_seed(x.device):
        leaves = pytree.tree_leaves(BPTT()(network, x), is_leaf=_is_signal)
    return [y.train[:, 0] if isinstance(y, Signal) else y[0] for y in leaves if isinstance(y, Signal | Tensor)]


def _with_other_mates(x: Tensor) -> Tensor:
    """The input with all samples but the first replaced by noise of its size."""
    changed = (x[:1] if is_constant(x) else x).clone()
    changed[:, 1:] = changed.mean() + changed.std() * torch.randn_like(changed[:, 1:])
    return _with_batch(x, changed)


def _with_batch(x: Tensor, batch: Tensor) -> Tensor:
    """A batch [1 or T, B, ...] in as many steps as x has."""
    return batch.expand(len(x), *batch.shape[1:])


@contextmanager
def _fixed_seed(device: torch.device) -> Iterator[None]:
    """Random numbers are the same each time, and those outside go on as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(0)  # torch.manual_seed queues a call for a GPU, even where there is none
        if device.type == "cuda":
            torch.cuda.manual_seed(0)
        yield


# Whether it can learn. --------------------------------------------------------------------------------------------------


_RULES = ("BPTT", "RateBP", "SLTT", "OTTT")


def _under_rules(network: nn.Module, x: Tensor, paths: Mapping[Any, str]) -> tuple[dict[str, bool | None], dict[str, str]]:
    """What parameters learn, as of `_learning`, and name of a rule -> which layer has no gradient under it, and why.

    They learn by `RateBP`, or by `BPTT` if that is refused.
    """
    refused = {}
    try:
        learning = _learning(network, x, RateBP())
    except RuleRefused as error:
        refused["RateBP"] = _where(error, paths)
        learning = _learning(network, x, BPTT())
    for rule in (SLTT(), OTTT()):
        try:
            with torch.no_grad():  # they ask layers for slopes all the same
                rule(network, x)
        except RuleRefused as error:
            refused[type(rule).__name__] = _where(error, paths)
    return learning, refused


def _taken(refused: Mapping[str, str]) -> str:
    """The rules that are left, as "BPTT, SLTT or OTTT"."""
    return _listed([name for name in _RULES if name not in refused], "or")


def _listed(names: Sequence[str], word: str) -> str:
    """Names as "a, b and c", where the word is "and"."""
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def _needs(refused: Mapping[str, str]) -> list[str]:
    """A sentence on the rules that a network needs, if it is not taken by all."""
    told = []
    for why in dict.fromkeys(refused.values()):
        names = [name for name, said in refused.items() if said == why]
        told.append(f"{_listed(names, 'and')} {'refuses' if len(names) == 1 else 'refuse'} {why}")
    return [f"it needs {_taken(refused)}, since {'; '.join(told)}"] if told else []


def _learning(network: nn.Module, x: Tensor, rule: Rule) -> dict[str, bool | None]:
    """Name of a parameter -> whether a training step by the rule changes it; None if it is not reached at all."""
    with torch.enable_grad():
        leaves = pytree.tree_leaves(rule(network, x), is_leaf=_is_signal)
        outputs = [o for y in leaves for o in ([y.rate, *y.exits] if isinstance(y, Signal) else [y])]
        losses = [(o * torch.randn_like(o)).sum() for o in outputs if isinstance(o, Tensor) and o.requires_grad]
        if losses:
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    learning = ((name, p.grad) for name, p in network.named_parameters() if p.requires_grad)
    return {name: None if grad is None else bool(grad.any()) for name, grad in learning}


def _unreached(learning: Mapping[str, bool | None], rule: str) -> list[str]:
    names = [name for name, learns in learning.items() if learns is None]
    return [f"{', '.join(names)}: no gradient under {rule}, since the output does not depend on it"] if names else []


def _firing(rows: Sequence[Row], learning: Mapping[str, bool | None]) -> tuple[list[str], list[str]]:
    """Faults and notes on layers that never fire, and on those that always do.

    A layer that never fires can learn to, unless its slopes are 0, too: then nothing before it has a gradient.
    """
    rates: dict[str, list[float]] = {}
    for row in rows:
        if row.rate is not None:
            rates.setdefault(row.layer or "the network", []).append(row.rate)
    faults, notes = [], []
    for layer, why in stuck({layer: max(found) for layer, found in rates.items()}, spiking=True).items():
        before = {row.layer for row in rows[: [row.layer or "the network" for row in rows].index(layer)]}
        weights = [learns for name, learns in learning.items() if name.rpartition(".")[0] in before]
        if why != "never fires":
            notes.append(f"{layer} {why}, so its rate tells nothing of this input")
        elif weights and not any(weights):
            faults.append(
                f"{layer} is silent: it never fires for this input, and no layer before it gets a gradient, so it stays so: "
                "lower its threshold, choose a wider surrogate, or put batch norm before it"
            )
        else:
            notes.append(f"{layer} is silent: it never fires for this input yet, but layers before it get a gradient")
    return faults, notes
