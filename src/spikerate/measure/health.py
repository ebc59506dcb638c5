"""Numerical problems: losses, gradients and values that are not finite; layers that never fire or always do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spikerate.losses import Terms
from spikerate.measure.meter import Ledger, Meter, watched
from spikerate.rules import BPTT
from spikerate.signal import Neuron, Signal
from spikerate.stream import OUTSIDE
from spikerate.system.modes import mode


class NotFinite(Exception):
    """A loss, a gradient or a value in a network is infinite or NaN."""


def gradient_norm(network: nn.Module) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar on the device; not finite if a gradient is not."""
    return nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])


def all_finite(terms: Terms) -> bool:
    """Whether all loss terms (of a step, or summed over steps) are finite; synchronises with the device."""
    return not terms or bool(torch.stack([value.float() for value in terms.values()]).isfinite().all())


def where_not_finite(network: nn.Module, forward: Callable[[], Any], terms: Terms) -> str | None:
    """Where the first value that is not finite appears: in a layer's output, in the loss, or in a gradient.

    Args:
        forward: runs the network on the batch; it is called without gradients.
        terms: the terms of the loss.

    Returns:
        a phrase with the layer's path; None if everything is finite.
    """
    layers = {module: name for name, module in network.named_modules() if not list(module.children())}
    found: list[str] = []
    order: list[str] = []

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        order.append(layers[module])
        if not found and not _is_finite(output):
            state = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            broken = ["input is"] if not _is_finite(inputs) else [f"{name} is" for name, v in state if not _is_finite(v)]
            given = f", whose {broken[0]} not finite already" if broken else ""
            found.append(f"in the output of {layers[module] or 'the network'} ({type(module).__name__}){given}")

    handles = [module.register_forward_hook(look) for module in layers]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    if not all(bool(value.isfinite()) for value in terms.values()):
        return "in the loss"
    broken = {
        n.rpartition(".")[0]: n for n, p in network.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
    }
    return next((f"in the gradient of {broken[name]}" for name in reversed(order) if name in broken), None)


def _is_finite(values: Any) -> bool:
    """Whether all tensors and signals among the values are finite; synchronises with the device."""
    leaves = pytree.tree_leaves(values, is_leaf=lambda v: isinstance(v, Signal))
    tensors = [v.train if isinstance(v, Signal) else v for v in leaves]
    return all(bool(t.isfinite().all()) for t in tensors if isinstance(t, Tensor))


@dataclass(frozen=True)
class CheckFinite:
    """A rule that raises an error if a value in the network is infinite or NaN, which spikes would hide.

    A spike is a comparison, and a comparison with NaN is false: neurons behind a broken weight or pixel are silent, while
    the logits stay finite. The inputs of all neurons and the output are checked. That reads each of them once more, and
    synchronises with the device once. If a value is not finite, the network is run again to find the layer.

    Call: `CheckFinite(BPTT())(network, x)`, like the rule inside, which may also be a `Meter`.

    Raises:
        NotFinite: a value is not finite; other errors as the rule.
    """

    rule: Callable[[Callable[[Signal], Any], Tensor], Any]

    def __call__(self, network: nn.Module, x: Tensor) -> Any:
        paths: dict[Any, str] = {module: path for path, module in network.named_modules()}
        seen: list[tuple[str, Tensor]] = []

        def look(neuron: Neuron, inputs: Signal, spikes: Signal) -> None:
            seen.append((paths.get(neuron, OUTSIDE), inputs.train.detach().isfinite().all()))

        output = self.rule(watched(network, look), x)
        for y in pytree.tree_leaves(output, is_leaf=lambda v: isinstance(v, Signal)):
            if isinstance(y, Signal):
                seen.append(("the output", y.train.detach().isfinite().all()))
        if seen and not torch.stack([finite for _, finite in seen]).all():
            first = next(path for path, finite in seen if not finite)
            where = where_not_finite(network, lambda: BPTT()(network, x), {}) or f"at {first}"
            raise NotFinite(
                f"a value is infinite or not a number; the first is {where}. Spikes hide it, but the predictions are wrong: "
                "check the weights and the data"
            )
        return output


def names_not_finite(terms: Mapping[str, Tensor]) -> list[str]:
    """The names of the loss terms that are not finite."""
    return [name for name, value in terms.items() if not bool(value.isfinite())]


def firing(network: nn.Module, x: Tensor) -> Ledger:
    """How often the neurons of a network fire in evaluation mode, for the input x [T, B, ...]."""
    ledger = Ledger()
    with mode(network, training=False), torch.no_grad():
        Meter(ledger)(network, x)
    return ledger


def stuck(rates: Mapping[str, float], spiking: bool) -> dict[str, str]:
    """The layers that can't learn, with the reason: "never fires" or, in a spiking network, "fires at every step"."""
    reasons = {0.0: "never fires"} | ({1.0: "fires at every step"} if spiking else {})
    return {layer: reasons[rate] for layer, rate in rates.items() if rate in reasons}
