"""Everything in torch that a network might call on a signal: right at each step, or refused by name."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import get_overridable_functions
from torch.utils import _pytree as pytree

from spikerate import BPTT, RateBP, Signal
from spikerate.signal import METHODS, VERBS

X, Y = "the signal", "another signal"
ARGUMENTS: list[tuple[Any, ...]] = [
    (X,),
    (X, 2),
    (X, 1),
    (X, -1),
    (X, 0),
    (X, 0.5),
    (X, 1, 2),
    (X, 2, 1),
    (X, 1, 0),
    (X, 1, 1, 2),
    (X, (1,)),
    (X, (0, 1)),
    (X, 3, -1),
    (X, (3, 2, -1)),
    (X, (2, 3, -1)),
    (X, (-1, 4)),
    (X, 0, 2, 1),
    (X, (0, 3, 1, 2)),
    (X, (1, 0, 2, 3)),
    (X, 1, (2, 2)),
    (X, (1, 2)),
    (X, (1, 1, 0, 2)),
    (X, [1, 3], 1),
    (X, torch.float64),
    (X, torch.int64),
    (X, Y),
    (X, torch.ones(())),
    (X, torch.rand(4, 4)),
    (X, torch.rand(5, 4, 3, 3)),
    (X, torch.rand(5, 4, 3), torch.rand(5)),
    (X, torch.rand(4), torch.rand(4)),
    (X, torch.rand(4), torch.rand(4), None, None, True),
    (torch.rand(4, 4), X),
    (2.0, X),
    ((X, Y),),
    ((X, Y), 1),
    ((X, Y), 0),
    (X, (slice(None), slice(1, 3))),
    (X, (slice(None), None, 0)),
    (X, (slice(None), [2, 0])),
    (X, (slice(None), torch.tensor([1, 1, 3]))),
    (X, (slice(None), 0, [0, 1])),
    (X, (slice(None), [0, 1], slice(None), [0, 1])),
    (X, (Ellipsis, 0)),
    (X, (Ellipsis, 0, slice(None), slice(None), slice(None))),
    (X, (Ellipsis, slice(None, 2), None)),
    (X, slice(None)),
    (X, slice(0, 2)),
    (X, None),
]
SHAPES = [(3, 4), (3, 4, 6), (3, 4, 6, 6)]
MODULES = (F, torch.special, torch.linalg, torch.fft)
OPERATORS = [f for name, f in vars(operator).items() if callable(f) and not name.startswith("_")]
ALIASES = {
    "logsigmoid": "log_sigmoid",
    "upsample": "interpolate",
    "upsample_nearest": "interpolate",
    "upsample_bilinear": "interpolate",
}
# They are for Python's objects and sequences, and not for tensors.
OF_OBJECTS = {"is_", "is_not", "attrgetter", "itemgetter", "methodcaller", "call", "concat", "iconcat", "countOf", "indexOf"}


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Name -> callable, of all that dispatches on tensors."""
    public = [(name, f) for module in MODULES for name, f in vars(module).items() if callable(f) and name[0].islower()]
    public = [(name, f) for name, f in public if str(getattr(f, "__module__", "torch")).startswith("torch")]
    overridable = [
        (f.__name__, f) for module, found in get_overridable_functions().items() if module is not Tensor for f in found
    ]
    for name, f in overridable + public:
        # `einsum` with numbers instead of letters is another function; others ask for tensors, or take seconds.
        if not name.startswith(("_", "has_torch_function", "einsum", "handle_torch_function", "lobpcg")):
            yield name, f
    yield from ((f.__name__, f) for f in OPERATORS if f.__name__ not in OF_OBJECTS)
    for name in dir(Tensor):
        if not name.startswith("_") and name != "T":  # a signal's own: the number of time steps
            yield f"Tensor.{name}", functools.partial(of_a_tensor, name)


def of_a_tensor(name: str, x: Any, *rest: Any) -> Any:
    """A method or property of a tensor, or of a signal."""
    found = getattr(x, name)
    return found(*rest) if callable(found) else found


def filled(arguments: Any, of: dict[str, Any]) -> Any:
    if isinstance(arguments, tuple):
        return tuple(filled(a, of) for a in arguments)
    return of[arguments] if isinstance(arguments, str) else arguments.clone() if isinstance(arguments, Tensor) else arguments


def outcome(f: Callable[..., Any], arguments: Any) -> Any:
    torch.manual_seed(0)  # of dropout
    try:
        return f(*arguments)
    except Exception as error:
        return error


def alike(a: Any, b: Any, least: float = 1e-6) -> bool:
    if not (isinstance(a, Tensor) and a.shape == b.shape and a.dtype == b.dtype):
        return False
    tolerance = max(least, 2 * torch.finfo(a.dtype).eps if a.dtype in (torch.float16, torch.bfloat16) else 0)
    return torch.allclose(a, b, tolerance, tolerance, equal_nan=True)


def signals(kind: Any, x: Tensor) -> list[Signal]:
    """Two signals of a rule, of x [2, T, B, ...]."""
    found: list[Signal] = []
    kind(lambda s: found.extend(s.unbind(1)), x.movedim(0, 2))
    return found


def refusal(name: str, f: Callable[..., Any], error: Exception) -> str | None:
    """What is wrong with an error where torch gives a value; None for a refusal by name."""
    said = str(error)
    if not (isinstance(error, TypeError) and "has no rule for a spiking signal" in said):
        return f"raises {type(error).__name__}: {said[:100]}"
    # A verb says what it is that it can't do, as "multiplying two signals".
    stem = name.removeprefix("Tensor.").strip("_")
    own = f in VERBS or stem in METHODS or f in OPERATORS
    return None if own or stem in said or ALIASES.get(stem, stem) in said else f"is refused without its name: {said[:80]}"


def difference(got: Any, plain: list[Any]) -> str | None:
    """What is wrong with a value on signals, and those of torch at each step; None where all is right."""
    found = pytree.tree_flatten(got, is_leaf=lambda v: isinstance(v, Signal))[0]
    steps = [pytree.tree_flatten(p)[0] for p in plain]
    if any(len(s) != len(found) for s in steps):
        return "returns another number of values"
    for k, one in enumerate(found):
        of_steps = [s[k] for s in steps]
        if not isinstance(one, Signal):
            if isinstance(of_steps[0], Tensor) or one != of_steps[0]:
                return f"returns a {type(one).__name__}"
        elif not alike(one.steps, torch.stack(of_steps)):
            return "has another value"
        elif not alike(one.rate, one.steps.mean(0)):
            return "has another rate"
    return None


def gradient(got: Any, x: Tensor) -> Tensor:
    torch.manual_seed(1)
    rates = [y.rate for y in pytree.tree_flatten(got, is_leaf=lambda v: isinstance(v, Signal))[0] if isinstance(y, Signal)]
    loss = sum((r * torch.rand(r.shape)).sum() for r in rates if r.numel() and r.requires_grad)
    return torch.autograd.grad(loss, x, retain_graph=True)[0] if isinstance(loss, Tensor) else torch.zeros_like(x)


FOUND = dict(functions())
WITH_VERB = {n: f for n, f in FOUND.items() if f in VERBS or f in OPERATORS or n.removeprefix("Tensor.") in METHODS}


@pytest.mark.filterwarnings("ignore")
def test_what_has_no_rule_is_refused_by_name() -> None:
    assert len(FOUND) > 1000
    x, tried, faults = torch.rand(2, 1, 3, 4, 6, 6), 0, []
    given = dict(zip((X, Y), signals(RateBP(), x), strict=True))
    for name, f in FOUND.items():
        if name not in WITH_VERB:
            plain = {X: x[0, 0].clone(), Y: x[1, 0].clone()}
            of_first = (a for a in ARGUMENTS if a[0] is X or not name.startswith("Tensor."))
            fits = (a for a in of_first if not isinstance(outcome(f, filled(a, plain)), Exception))
            fitting = list(itertools.islice(fits, 2))
            tried += bool(fitting)
            for arguments in fitting:
                got = outcome(f, filled(arguments, given))
                fault = (
                    refusal(name, f, got)
                    if isinstance(got, Exception)
                    else difference(got, [outcome(f, filled(arguments, plain))])
                )
                faults += [f"{name}{arguments} {fault}"] if fault else []
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults)
    assert tried > 600


def fault(f: Callable[..., Any], name: str, arguments: Any, x: Tensor, given: list[dict[str, Signal]]) -> str | None:
    """What is wrong with a call that torch can do on x [2, T, B, ...], of signals of x under several rules."""
    got = [outcome(f, filled(arguments, of)) for of in given]
    error = next((g for g in got if isinstance(g, Exception)), None)
    if error is not None:
        return refusal(name, f, error)
    plain = [outcome(f, filled(arguments, {X: a.detach().clone(), Y: b.detach().clone()})) for a, b in zip(*x, strict=True)]
    wrong = next((d for g in got if (d := difference(g, plain))), None)
    # Torch's gradient of a norm of two elements is off by 1e-4.
    if not wrong and x.shape[1] == 1 and not alike(*(gradient(g, x) for g in got), least=2e-4):
        return "has another gradient under RateBP than under BPTT at T = 1"
    return wrong


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_has_a_rule_is_right_at_each_step_and_has_the_right_gradient(shape: tuple[int, ...]) -> None:
    faults, right = [], set()
    both = [torch.rand(2, T, *shape).requires_grad_() for T in (1, 2)]
    given = [[dict(zip((X, Y), signals(rule, x), strict=True)) for rule in (BPTT(), RateBP())] for x in both]
    for name, f in WITH_VERB.items():
        for arguments in ARGUMENTS:
            one = {X: torch.rand(shape), Y: torch.rand(shape)}
            if (arguments[0] is X or not name.startswith("Tensor.")) and not isinstance(
                outcome(f, filled(arguments, one)), Exception
            ):
                found = [fault(f, name, arguments, x, of) for x, of in zip(both, given, strict=True)]
                # In training, batch norm has the statistics of all steps.
                faults += [f"{name}{arguments} {words}" for words in found if words and name != "batch_norm"]
                right |= set() if any(found) else {name}
    assert not faults, f"{len(faults)}:\n" + "\n".join(faults)
    assert len(right) > 60
