"""Products of two signals: their values and gradients against loops, against BPTT, and in all that runs a network."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spikerate import BPTT, LIF, OTTT, SLTT, RateBP, check, operation
from spikerate.gradients.agreement import Comparison
from spikerate.gradients.finite_difference import variant_rates
from spikerate.measure.meter import PRODUCTS, Ledger, Meter, Tally
from support.networks import Functional, attention_network, gradients, saved_bytes

# axes of the operands and of the output, one letter each; and the operation on signals
PRODUCTS_OF_TWO: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "*": ("bcn,bcn->bcn", lambda a, b: a * b),
    "mul": ("bchw,bchw->bchw", torch.mul),
    "@": ("bij,bjk->bik", lambda a, b: a @ b),
    "matmul": ("bhij,bhjk->bhik", torch.matmul),
    "method": ("bhij,bhjk->bhik", lambda a, b: a.matmul(b)),
    "bmm": ("bij,bjk->bik", torch.bmm),
    "scores": ("bhnd,bhmd->bhnm", lambda a, b: torch.einsum("bhnd, bhmd -> bhnm", a, b)),
    "gate": ("bcn,bc->bnc", lambda a, b: torch.einsum("bcn,bc->bnc", a, b)),
    "inner": ("bxyd,bxyd->bxy", lambda a, b: torch.einsum("b...d,b...d->b...", a, b)),
    "implicit": ("bxij,bxjk->bxik", lambda a, b: torch.einsum("...ij,...jk", [a, b])),
    "outer": ("bi,bj->bij", lambda a, b: torch.einsum("bi,bj->bij", a, b)),
    "own": ("bi,bi->bi", operation("product")(lambda a, b, factor=1.0: factor * a * b)),
}
BROADCAST = {"*": "cn", "mul": "chw", "matmul": "h", "method": "h", "scores": "hd", "inner": "xyd", "implicit": "x"}
"""Axes that may have length 1 in one operand."""
RULES: list[Any] = [RateBP(), RateBP(chunk=1), RateBP(chunk=2), BPTT(), BPTT(chunk=2), SLTT(), OTTT(chunk=1)]


def places(equation: str, a: np.ndarray, b: np.ndarray) -> Any:
    """For each multiplication the index of both factors and of the sum it goes into."""
    first, second, output = equation.replace("->", ",").split(",")
    sizes = dict.fromkeys(first + second, 1)
    for axis, n in [*zip(first, a.shape, strict=True), *zip(second, b.shape, strict=True)]:
        sizes[axis] = max(sizes[axis], n)
    for at in itertools.product(*map(range, sizes.values())):
        where = dict(zip(sizes, at, strict=True))
        yield (
            tuple(where[axis] % n for axis, n in zip(first, a.shape, strict=True)),
            tuple(where[axis] % n for axis, n in zip(second, b.shape, strict=True)),
            tuple(where[axis] for axis in output),
        )


def multiplied(equation: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product [B, ...] of a and b [B, ...], one multiplication after the other."""
    found = list(places(equation, a, b))
    z = np.zeros([1 + max(axis) for axis in zip(*(o for _, _, o in found), strict=True)])
    for i, j, o in found:
        z[o] += a[i] * b[j]
    return z


def passed_back(equation: str, a: np.ndarray, b: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of a and b, one multiplication after the other."""
    of_a, of_b = np.zeros_like(a), np.zeros_like(b)
    for i, j, o in places(equation, a, b):
        of_a[i] += g[o] * b[j]
        of_b[j] += g[o] * a[i]
    return of_a, of_b


def operands(name: str, sizes: list[int], ones: int, B: int) -> tuple[list[int], list[int]]:
    """Shapes of the operands, of axes of these sizes; the bits of `ones` say which axes are broadcast."""
    first, second = PRODUCTS_OF_TWO[name][0].partition("->")[0].split(",")
    of_axis = dict(zip(dict.fromkeys(first + second), [B, *sizes], strict=False))
    shapes = [of_axis[axis] for axis in first], [of_axis[axis] for axis in second]
    for bit, axis in enumerate(BROADCAST.get(name, "")):
        if ones >> bit & 1:
            term, shape = ((first, shapes[0]), (second, shapes[1]))[ones >> (4 + bit) & 1]
            shape[term.index(axis)] = 1
    return shapes


def of_both(f: Callable[[Any, Any], Any], one: list[int], other: list[int]) -> nn.Module:
    """f of two signals of these shapes, which lie side by side in [B, N]."""
    n = int(np.prod(one[1:]))
    return Functional(lambda x: f(x[:, :n].reshape(len(x), *one[1:]), x[:, n:].reshape(len(x), *other[1:])))


@given(
    name=st.sampled_from([*PRODUCTS_OF_TWO]),
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 2**31),
    T=st.integers(1, 4),
    B=st.integers(1, 2),
    sizes=st.lists(st.integers(1, 3), min_size=5, max_size=5),
    ones=st.integers(0, 255),
    spikes=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_values_and_gradients_are_those_of_a_loop(
    name: str, rule: Any, seed: int, T: int, B: int, sizes: list[int], ones: int, spikes: bool
) -> None:
    equation, f = PRODUCTS_OF_TWO[name]
    one, other = operands(name, sizes, ones, B)
    torch.manual_seed(seed)
    x = torch.randn(T, B, int(np.prod(one[1:]) + np.prod(other[1:])), dtype=torch.float64)
    x = ((x > 0).double() if spikes else x).requires_grad_()
    out = rule(of_both(f, one, other), x)
    a, b = (part.numpy().reshape(T, *shape) for part, shape in zip(split(x, one), (one, other), strict=True))
    expected = np.stack([multiplied(equation, *step) for step in zip(a, b, strict=True)])
    np.testing.assert_allclose(out.steps.detach(), expected, atol=1e-12)
    np.testing.assert_allclose(out.rate.detach(), expected.mean(0), atol=1e-12)

    g = torch.randn_like(out.rate)
    parts = split(grad(out.rate, g, x), one)
    found = [part.numpy().reshape(T, *shape) for part, shape in zip(parts, (one, other), strict=True)]
    if isinstance(rule, RateBP):  # the products of the rates
        at_step = [passed_back(equation, a.mean(0), b.mean(0), g.numpy())] * T
    else:
        at_step = [passed_back(equation, *step, g.numpy()) for step in zip(a, b, strict=True)]
    for k in (0, 1):
        np.testing.assert_allclose(found[k], np.stack([both[k] for both in at_step]) / T, atol=1e-12)


def grad(y: Tensor, g: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y, x, g)[0]


def split(x: Tensor, one: list[int]) -> tuple[Tensor, Tensor]:
    n = int(np.prod(one[1:]))
    return x.detach()[..., :n], x.detach()[..., n:]


def test_queries_see_the_mean_of_what_keys_and_values_have_made() -> None:
    """So their gradient is exact; that of keys and values leaves out how these vary together with the queries."""
    T, B = 5, 2
    x = torch.randn(T, B, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    out = RateBP()(Functional(lambda x: (x[:, 2] @ x[:, 1].transpose(1, 2)) @ x[:, 0]), x)
    q, k, v = x.detach().unbind(2)
    both = v @ k.transpose(2, 3)
    torch.testing.assert_close(out.rate.detach(), (both @ q).mean(0))
    g = torch.randn_like(out.rate)
    of_both = g @ q.mean(0).transpose(1, 2)
    expected = [both.mean(0).transpose(1, 2) @ g, of_both.transpose(1, 2) @ v.mean(0), of_both @ k.mean(0)]
    torch.testing.assert_close(grad(out.rate, g, x), torch.stack(expected, 1).expand_as(x) / T)


# in a network -------------------------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """Squeeze and excitation by spikes: channels are multiplied by a gate of their own, [B, C, N]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(channels, channels), LIF(threshold=0.2))

    def forward(self, x: Any) -> Any:
        return x * self.gate(x.mean(2)).unsqueeze(2)


def low() -> LIF:
    return LIF(threshold=0.4)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: attention_network(neuron=low),
    "gates": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), low(), nn.Flatten(2), Gated(4), low(), nn.Flatten(), nn.Linear(64, 3)
    ),
}
LABELS = torch.arange(4) % 3


def made(name: str, T: int, varying: bool = True) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(T if varying else 1, 4, 2, 6, 6, dtype=torch.float64)
    return NETWORKS[name]().double(), x.expand(T, *x.shape[1:])


def of_loss(rule: Any, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return gradients(network, F.cross_entropy(rule(network, x).rate, LABELS))


@pytest.mark.parametrize("name", NETWORKS)
def test_at_one_step_all_rules_have_the_gradient_of_backpropagation(name: str) -> None:
    network, x = made(name, 1)
    expected = of_loss(BPTT(), network, x)
    assert all(bool(g.any()) for g in expected.values())
    for rule in (RateBP(), RateBP(chunk=1), SLTT(), OTTT(), BPTT(checkpoint=True)):
        found = of_loss(rule, network, x)
        for parameter in expected:
            torch.testing.assert_close(found[parameter], expected[parameter], msg=f"{rule} {parameter}")


@pytest.mark.parametrize(("name", "varying"), [("attention", True), ("gates", True), ("gates", False)])
def test_chunks_and_checkpoints_have_the_same_gradient(name: str, varying: bool) -> None:
    network, x = made(name, 3, varying)
    network.eval()  # batch norm in training has the statistics of each chunk
    for kind in (RateBP, BPTT, SLTT, OTTT):
        expected, steps = of_loss(kind(), network, x), kind()(network, x).steps
        for rule in (kind(chunk=1), kind(chunk=2), *([BPTT(checkpoint=True)] if kind is BPTT else [])):
            torch.testing.assert_close(rule(network, x).steps, steps, rtol=0, atol=1e-12)
            found = of_loss(rule, network, x)
            for parameter in expected:
                torch.testing.assert_close(found[parameter], expected[parameter], msg=f"{rule} {parameter}")


@pytest.mark.parametrize("rule", [BPTT(), RateBP(), RateBP(chunk=1), OTTT(chunk=2)], ids=str)
def test_a_stream_of_attention_in_windows_is_the_whole(rule: Any) -> None:
    network, x = made("attention", 5)
    state, outs = None, []
    for part in x.split(2):
        out, state = rule.continued(network.eval(), part, state)
        torch.testing.assert_close(out.rate, out.steps.mean(0))
        outs.append(out.steps)
    torch.testing.assert_close(torch.cat(outs), rule(network, x).steps)


def test_bytes_saved_for_backward_do_not_grow_with_the_steps() -> None:
    network, image = attention_network(), torch.rand(2, 2, 6, 6)
    rate = [saved_bytes(RateBP(), network, image.expand(T, *image.shape)) for T in (1, 2, 4, 8)]
    assert len(set(rate)) == 1, rate
    single = [saved_bytes(RateBP(chunk=1), network, image.expand(T, *image.shape)) for T in (2, 8)]
    assert len(set(single)) == 1, single
    bptt = [saved_bytes(BPTT(), network, image.expand(T, *image.shape)) for T in (1, 8)]
    assert bptt[1] > 6 * bptt[0]


def test_the_gradient_stays_near_that_of_bptt() -> None:
    """Not proved, but measured: docs/method.md has the figures of a larger network."""
    network, x = made("attention", 4, varying=False)
    one, other = (torch.cat([g.flatten() for g in of_loss(rule, network, x).values()]) for rule in (RateBP(), BPTT()))
    assert F.cosine_similarity(one, other, 0) > 0.9


def test_products_are_compiled_whole() -> None:
    def products(x: Any) -> Any:
        scores = torch.einsum("bin,bjn->bij", x, x)  # of a signal with itself, which the compiler is not given twice
        return torch.matmul(scores, x * x.mean(2, keepdim=True)) + torch.bmm(scores, x)

    network, x = nn.Sequential(nn.Linear(5, 5), LIF(threshold=0.2), Functional(products)), torch.randn(3, 2, 4, 5)
    compiled = torch.compile(RateBP(), fullgraph=True, dynamic=False, backend="aot_eager")
    found, expected = (gradients(network, rule(network, x).rate.square().sum()) for rule in (compiled, RateBP()))
    for parameter in expected:
        torch.testing.assert_close(found[parameter], expected[parameter])


def test_products_in_half_precision_and_in_a_function_of_torch() -> None:
    network, x = attention_network(neuron=low), torch.randn(3, 4, 2, 6, 6)
    expected = of_loss(RateBP(), network, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = of_loss(RateBP(), network, x)
    assert all(bool(g.isfinite().all()) and g.dtype == torch.float32 for g in found.values())
    flat = [torch.cat([g.flatten() for g in of.values()]) for of in (found, expected)]
    assert F.cosine_similarity(*flat, 0) > 0.5
    both = Functional(lambda x: torch.einsum("bin,bjn->bij", x, x) * 0.5)
    y = torch.randn(3, 4, 2, 5)
    of_sum = torch.func.grad(lambda x: RateBP()(both, x).rate.sum())(y)
    y.requires_grad_()
    torch.testing.assert_close(of_sum, grad(RateBP()(both, y).rate, torch.ones(4, 2, 2), y))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(RateBP()(both, y).rate.sum(), y, create_graph=True)


# what looks at networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["*", "bmm", "scores", "gate"])
@pytest.mark.parametrize("kinds", [("spikes", "spikes"), ("spikes", "real"), ("real", "real")])
def test_operations_are_the_pairs_that_are_not_zero(name: str, kinds: tuple[str, str]) -> None:
    equation, f = PRODUCTS_OF_TWO[name]
    one, other = operands(name, [2, 3, 4, 2, 3], 0, 2)
    torch.manual_seed(0)
    parts = [(torch.rand(3, *shape) < 0.5).float() for shape in (one, other)]
    parts = [part if kind == "spikes" else part * torch.rand_like(part) for part, kind in zip(parts, kinds, strict=True)]
    network = of_both(f, one, other)
    tally = Tally.of(network)
    Meter(Ledger(), tally)(network, torch.cat([part.flatten(2) for part in parts], 2))
    (layer,) = tally.energy(1, 3).layers.items()
    active = [(part != 0).double().numpy() for part in parts]
    effective = sum(multiplied(equation, *step).sum() for step in zip(*active, strict=True))
    assert layer[0] == PRODUCTS and layer[1].effective == effective
    assert layer[1].dense == 3 * len(list(places(equation, *(part[0] for part in active))))
    assert layer[1].binary == ("spikes" in kinds)  # a factor of 0 or 1 multiplies nothing


def test_a_constant_product_counts_at_every_step() -> None:
    network, x = Functional(lambda x: x * x), torch.rand(1, 2, 5)
    found = []
    for train in (x.expand(4, 2, 5), x.repeat(4, 1, 1)):
        tally = Tally.of(network)
        Meter(Ledger(), tally)(network, train)
        found.append(tally.energy(2, 4).layers[PRODUCTS])
    assert found[0] == found[1] and found[0].dense == found[0].effective == 4 * 5 and found[0].acs == 0


def test_variants_of_a_weight_are_networks_with_that_weight() -> None:
    network, x = made("attention", 3)
    weight = network[4].layers[0].keys[0].weight  # type: ignore[index, union-attr]
    changes = torch.randn(3, *weight.shape, dtype=torch.float64)  # type: ignore[misc]
    with torch.no_grad():
        found = variant_rates(network, x, weight, changes)  # type: ignore[arg-type]
        for rates, change in zip(found, changes, strict=True):
            weight.add_(change)  # type: ignore[operator]
            torch.testing.assert_close(BPTT()(network, x).rate, rates)
            weight.sub_(change)  # type: ignore[operator]


def test_the_agreement_of_gradients_goes_through_products() -> None:
    network, x = made("attention", 2)
    found = Comparison(samples=4, directions=1)(network, x, LABELS)
    assert len(found) == 1 + 2 * 6 + 1 and all(0 < abs(layer.rate_bptt.cosine) < 1 for layer in found[:-1])


def test_the_checker_tells_products_and_where_they_are_exact() -> None:
    network, x = made("attention", 3)
    found = check(network, x)
    assert found.fine, found.faults
    products = [row for row in found.rows if row.verb == "product"]
    assert [(row.layer, row.operation, row.exact) for row in products[:2]] == [("4.layers.0", "matmul", False)] * 2
    assert len(products) == 4 and [row.macs for row in products[:2]] == [2 * 4 * 4 * 9] * 2
    assert any(line.startswith("product: of two signals") for line in found.told)
    with_constant = nn.Sequential(nn.Flatten(), Functional(lambda x: x * nn.Identity()(x)), LIF(), nn.Linear(72, 3)).double()
    found = check(with_constant, x[:1].expand(3, *x.shape[1:]))
    assert found.rows[1].verb == "product" and found.rows[1].operation == "mul" and found.rows[1].exact
    assert all(row.exact for row in check(network.eval(), x[:1]).rows if row.verb == "product")


@pytest.mark.parametrize(
    ("f", "said"),
    [
        (lambda a, b: a.square() * b, "is declared a product and is not linear in each of its two signals"),
        (lambda a, b: (a * b).roll(1, 0), "mixes"),
    ],
)
def test_the_checker_finds_a_product_that_is_none(f: Any, said: str) -> None:
    own = operation("product")(f)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(72, 6), LIF(threshold=0.1), Functional(lambda x: own(x, x)), nn.Linear(6, 3)
    )
    assert any(said in fault for fault in check(network, torch.randn(3, 4, 2, 6, 6)).faults)


# what is refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "kind", "said"),
    [
        (lambda x: x * x[:, :1, :2], ValueError, r"multiplying got signals of \[3, 4, 6\] and \[3, 1, 2\] without time"),
        (lambda x: x * x.flatten(1), TypeError, "multiplying signals of 3 and 2 axes has no rule"),
        (lambda x: x @ x, ValueError, r"matmul got signals of \[3, 4, 6\] and \[3, 4, 6\] without time, whose sizes do"),
        (lambda x: torch.bmm(x, x), ValueError, "bmm got signals of .* give sizes that are equal, or 1"),
        (lambda x: x[:, 0] @ x[:, 0], TypeError, "matmul of signals of 2 and 2 axes, the batch's among them, has no rule"),
        (lambda x: x @ x.unsqueeze(1), TypeError, "matmul of signals of 3 and 4 axes has no rule"),
        (lambda x: x @ "matrix", TypeError, "matmul with something that is no signal has no rule"),
        (lambda x: x.bmm(torch.rand(3, 6, 2)), TypeError, "bmm with something that is no signal has no rule"),
        (lambda x: torch.einsum("bij,bij->bji", x, x[:, :2]), ValueError, "einsum got signals of .* do not go together"),
        (lambda x: torch.einsum("bij,bjk", x, x), TypeError, "einsum of 'bij,bjk', which mixes the samples of a batch,"),
        (lambda x: torch.einsum("bij,cij->bc", x, x), TypeError, "which mixes the samples of a batch, has no rule"),
        (lambda x: torch.einsum("bij,bij->ij", x, x), TypeError, "which mixes the samples of a batch, has no rule"),
        (lambda x: torch.einsum("bij,bik->bk", x, x), TypeError, "which sums or broadcasts an axis that one"),
        (lambda x: torch.einsum("b...,b...i->b...i", x, x), TypeError, "which sums or broadcasts an axis that one"),
        (lambda x: torch.einsum("bii,bij->bj", x, x), TypeError, "with an axis twice, has no rule"),
        (lambda x: torch.einsum("bij,bij->bk", x, x), ValueError, "has axes in its output that are in no operand"),
        (lambda x: torch.einsum("bi,bij->bj", x, x), ValueError, r"another number of axes than a signal of \[3, 4, 6\]"),
        (lambda x: torch.einsum("bij->bij", x, x), ValueError, "is for 1 operands, and two signals were given"),
        (lambda x: torch.einsum("bij->bi", x), TypeError, "einsum of anything but two signals has no rule"),
        (lambda x: torch.einsum("bij,bij,bij->bi", x, x, x), TypeError, "einsum of anything but two signals has no rule"),
        (lambda x: torch.einsum("bij,ij->bi", x, torch.rand(4, 6)), TypeError, "einsum of anything but two signals"),
        (
            lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
            TypeError,
            "scaled_dot_product_attention with a mask",
        ),
        (lambda x: torch.baddbmm(x, x, x), TypeError, "baddbmm has no rule"),
        (operation("product")(lambda a, b=None: a), TypeError, "which is a product of two signals, of 1, has no rule"),
    ],
)
@pytest.mark.parametrize("rule", [RateBP(), BPTT(), Meter(Ledger())], ids=["rate", "bptt", "meter"])
def test_what_is_no_product_of_signals_is_refused_in_words(f: Any, kind: type[Exception], said: str, rule: Any) -> None:
    with pytest.raises(kind, match=said):
        rule(Functional(f), torch.rand(2, 3, 4, 6))


@pytest.mark.parametrize("rules", [(RateBP(), RateBP()), (RateBP(), BPTT()), (BPTT(), SLTT())], ids=str)
@pytest.mark.parametrize("T", [2, 3])
def test_signals_of_two_calls_are_not_multiplied(rules: tuple[Any, Any], T: int) -> None:
    kept: list[Any] = []
    rules[0](Functional(lambda x: kept.append(x) or x), torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match="a layer got signals of two forward passes"):
        rules[1](Functional(lambda x: x * kept[0]), torch.rand(T, 3, 4))
