"""What torch does with a network from outside: wrappers, checkpoints, hooks, torch.func. It is right, or it is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, replace_all_batch_norm_modules_, vmap
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from spikerate import BPTT, LIF, OTTT, SLTT, RateBP, Signal
from support import ROOT
from support.networks import small_network

RULES: list[Any] = [RateBP(), RateBP(chunk=1), BPTT(), BPTT(chunk=2), SLTT(), OTTT(chunk=1)]
CHUNKED: list[Any] = [RateBP(chunk=1), BPTT(chunk=1), SLTT(chunk=1), OTTT(chunk=1)]
PAGE = (ROOT / "docs" / "howto" / "own-loop-distributed.md").read_text()


def example(language: str, words: str) -> str:
    return next(code for code in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if words in code)


def run_in_two(folder: Path, script: Path, *arguments: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, script, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights that the example of the how-to page trains in one process."""
    folder = tmp_path_factory.mktemp("alone")
    exec(
        compile(example("python", "# train.py").replace('"network.pt"', f'r"{folder / "network.pt"}"'), "train.py", "exec"),
        {},
    )
    return dict(torch.load(folder / "network.pt"))


def assert_same_weights(folder: Path, alone: dict[str, Tensor]) -> None:
    found = torch.load(folder / "network.pt")
    assert found.keys() == alone.keys()
    for name in alone:
        torch.testing.assert_close(found[name], alone[name])


def test_wrapped_networks_average_their_gradients(tmp_path: Path, alone: dict[str, Tensor]) -> None:
    """In two processes: the example of the how-to page, and each wrapper around a network under each rule."""
    (tmp_path / "train.py").write_text(example("python", "# train.py"))
    run_in_two(tmp_path, ROOT / "tests" / "support" / "wrappers_worker.py", "train.py")
    assert_same_weights(tmp_path, alone)


@pytest.mark.parametrize("library", ["accelerate", "pytorch_lightning"])
def test_the_examples_for_other_libraries(library: str, tmp_path: Path, alone: dict[str, Tensor]) -> None:
    pytest.importorskip(library)
    (tmp_path / "train.py").write_text(example("py", library))
    run_in_two(tmp_path, tmp_path / "train.py")
    assert_same_weights(tmp_path, alone)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_reentrant_checkpoint_is_refused_within_a_network_and_right_around_it(rule: Any) -> None:
    network = nn.Sequential(nn.Linear(6, 5), LIF(), nn.Linear(5, 4), LIF()).double()
    x = torch.rand(3, 2, 6, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        rule(lambda s: checkpoint(network[2:], network[:2](s), use_reentrant=True), x)

    def around(x: Tensor) -> Tensor:
        return rule(network, x).rate

    found = []
    for run in (around, lambda x: checkpoint(around, x, use_reentrant=True)):
        network.zero_grad()
        run(x).square().sum().backward()
        found.append([p.grad for p in network.parameters()])
    torch.testing.assert_close(*found)
    frozen = torch.no_grad()(network[:2])
    rule(lambda s: network[2:](frozen(s)), x).rate.sum().backward()  # what does without graph on purpose is let alone


@pytest.mark.parametrize("rule", [RateBP(), BPTT(chunk=1)], ids=str)
def test_backward_hooks_are_refused_where_torch_would_not_call_them(rule: Any) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.ann = nn.Sequential(nn.Linear(6, 5), LIF()), nn.Linear(5, 2)

        def forward(self, x: Signal) -> Signal:
            y = self.body(x)
            self.ann(y.tap())
            return y

    network, called = Head(), []
    network.ann.register_full_backward_hook(lambda *_: called.append(True))
    rule(network, torch.rand(2, 3, 6))  # tensors come out of that one
    handle = network.body.register_full_backward_hook(lambda *_: called.append(True))
    with pytest.raises(ValueError, match="backward hook on a Sequential that returns a signal"):
        rule(network, torch.rand(2, 3, 6))
    handle.remove()
    rule(network, torch.rand(2, 3, 6))
    assert not network.body._forward_hooks


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_second_derivatives_are_refused(rule: Any) -> None:
    """Also where other ways lead past the neurons, so that a part of the value would come out."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 5), LIF(), nn.Linear(5, 4)).double()
    x = torch.rand(3, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    parameters = dict(network.named_parameters())

    def loss(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        rate = rule(lambda s: functional_call(network, parameters, (s,)), x).rate
        return rate.sum() + rate.square().sum() + x.pow(3).sum()

    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss(x, parameters), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad(lambda x: grad(loss)(x, parameters).sum())(x)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad(loss)(x, parameters).sum().backward()
    with pytest.raises(NotImplementedError, match="forward mode"):
        jvp(lambda x: loss(x, parameters), (x,), (x,))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("static", [True, False])
def test_gradients_of_each_sample_are_those_of_a_loop(rule: Any, static: bool) -> None:
    network = small_network(lambda: LIF(threshold=0.3)).double().eval()
    x = torch.rand(1 if static else 3, 4, 2, 6, 6, dtype=torch.float64).mul(2).expand(3, -1, -1, -1, -1)
    labels = torch.arange(4) % 3

    def loss(parameters: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        rate = rule(lambda s: functional_call(network, parameters, (s,)), x.unsqueeze(1)).rate
        return F.cross_entropy(rate, label.unsqueeze(0))

    parameters = {name: p.detach() for name, p in network.named_parameters()}
    found = vmap(grad(loss), in_dims=(None, 1, 0))(parameters, x, labels)
    for k in range(4):
        alone = F.cross_entropy(rule(network, x[:, k : k + 1]).rate, labels[k : k + 1])
        for (name, g), expected in zip(found.items(), torch.autograd.grad(alone, list(network.parameters())), strict=True):
            torch.testing.assert_close(g[k], expected, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    assert all(g.abs().max() > 0 for g in found.values())


@pytest.mark.parametrize("rule", [RateBP(), BPTT()], ids=str)
def test_batch_norm_in_training_under_vmap(rule: Any) -> None:
    network = small_network().double()
    x = torch.rand(3, 2, 4, 2, 6, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"torch\.func"):
        vmap(lambda x: rule(network, x).rate)(x)
    replace_all_batch_norm_modules_(network)
    found = vmap(lambda x: rule(network, x).rate)(x)
    torch.testing.assert_close(found, torch.stack([rule(network, one).rate for one in x]))
    with pytest.raises(ValueError, match=r"torch\.vmap.* return the signal's \.rate"):
        vmap(lambda x: rule(network, x))(x)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_signal_is_a_node_of_torchs_pytrees(rule: Any) -> None:
    out = rule(small_network(), torch.rand(3, 2, 2, 6, 6))
    leaves, spec = pytree.tree_flatten({"logits": out})
    assert any(leaf.requires_grad for leaf in leaves) and all(isinstance(leaf, Tensor) for leaf in leaves)
    again = pytree.tree_unflatten(leaves, spec)["logits"]
    assert (type(again) is type(out) and again.rate is out.rate) or torch.equal(again.rate, out.rate)
    assert torch.equal(pytree.tree_map(lambda t: t + 1, out).steps, out.steps + 1)


# chunks -----------------------------------------------------------------------------------------------------------------


class Planned(nn.Module):
    """In each chunk, other layers in another order."""

    def __init__(self, plan: list[list[int]]) -> None:
        super().__init__()
        self.plan = iter(plan)
        self.first = nn.Sequential(nn.Linear(5, 5), LIF(threshold=0.3))
        self.layers = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(5, 5), LIF(threshold=0.3)),
                nn.Sequential(nn.Linear(5, 5), LIF(threshold=0.3)),
                nn.AvgPool1d(1),
                nn.AvgPool1d(3, 1, 1),
                nn.MaxPool1d(3, 1, 1),
            ]
        )

    def forward(self, x: Signal) -> Signal:
        x = self.first(x)
        for k in next(self.plan):
            y = self.layers[k](x)
            x = x + y if k < 2 else y
        return x


@given(
    plan=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=3, max_size=3),
    same=st.booleans(),
    rule=st.sampled_from(CHUNKED),
)
@settings(max_examples=60, deadline=None)
def test_layers_skipped_or_reordered_in_a_chunk_are_right_or_refused(plan: list[list[int]], same: bool, rule: Any) -> None:
    """LayerDrop, early exit, a module that is called twice: membranes are never another layer's."""
    torch.manual_seed(0)
    plan = [plan[0]] * 3 if same else plan
    network = Planned(plan).double()
    x = torch.rand(3, 2, 5, dtype=torch.float64) * 2
    neurons = [[k for k in chunk if k < 2] for chunk in plan]
    told_apart = plan if isinstance(rule, RateBP) else neurons
    if told_apart[0] == told_apart[1] == told_apart[2]:
        out = rule(network, x)
        assert torch.allclose(out.rate, out.steps.mean(0))
    else:
        with pytest.raises(ValueError, match="other layers in this chunk"):
            rule(network, x)


@pytest.mark.parametrize(
    "choose",
    [
        lambda ys, k: ys[k],
        lambda ys, k: ys[0] + ys[k],
        lambda ys, k: torch.cat([ys[k], ys[2]], 1),
        lambda ys, k: torch.add(ys[0], ys[1], alpha=k),
    ],
)
def test_other_operands_in_a_chunk_are_refused_under_rates(choose: Callable[[list[Signal], int], Signal]) -> None:
    layers = nn.ModuleList([nn.Sequential(nn.Linear(5, 5), LIF(threshold=0.3)) for _ in range(3)])
    for rule in (RateBP(chunk=1), BPTT(chunk=1)):
        turns = iter([0, 1, 1])

        def network(x: Signal, turns: Any = turns) -> Signal:
            return choose([layer(x) for layer in layers], next(turns))

        if isinstance(rule, BPTT):
            out = rule(network, torch.rand(3, 2, 5))
            torch.testing.assert_close(out.rate, out.steps.mean(0))
        else:
            with pytest.raises(ValueError, match="other layers in this chunk"):
                rule(network, torch.rand(3, 2, 5))


def test_a_layer_may_have_weights_that_are_computed_each_time() -> None:
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)), LIF(threshold=0.2), nn.Linear(5, 3))
    x = torch.rand(3, 2, 5)
    for rule in CHUNKED:
        torch.testing.assert_close(rule(network, x).rate, BPTT()(network, x).rate)


@pytest.mark.parametrize("rule", [*RULES, BPTT(chunk=1)], ids=str)
def test_signals_of_two_forward_passes_do_not_meet(rule: Any) -> None:
    x = torch.rand(3, 2, 5)
    for other in RULES:
        kept = other(nn.Identity(), x)
        for meet in (lambda a, b: a + b, lambda a, b: b + a, lambda a, b: torch.cat([a, b], 1)):
            with pytest.raises(ValueError, match="two forward passes"):
                rule(lambda s, meet=meet, kept=kept: meet(s, kept), x)
    chunks: list[Signal] = []

    def remembers(x: Signal) -> Signal:
        chunks.append(x)
        return chunks[0] + x

    if rule.chunk is not None:
        with pytest.raises(ValueError, match="two chunks"):
            rule(remembers, x)
