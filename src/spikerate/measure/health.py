"""Numerical trouble: steps that are not finite, layers that never fire or always do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spikerate.losses import Terms
from spikerate.measure.meter import Ledger, Meter
from spikerate.signal import Signal


class NotFinite(Exception):
    """A loss or a gradient is infinite or not a number."""


def gradient_norm(network: nn.Module) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar on the device; not finite where one of them is not."""
    return nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])


def all_finite(terms: Terms) -> bool:
    """Whether all terms are, of a step or summed over steps; waits for the device."""
    return not terms or bool(torch.stack([value.float() for value in terms.values()]).isfinite().all())


def where_not_finite(network: nn.Module, forward: Callable[[], Any], terms: Terms) -> str | None:
    """Where something that is not finite appears first: in a layer's output, in the loss, or in a gradient.

    Args:
        forward: runs the network on the batch, without a graph.
        terms: of the loss.

    Returns:
        a phrase with the layer's path; None where all is finite.
    """
    layers = {module: name for name, module in network.named_modules() if not list(module.children())}
    found: list[str] = []
    order: list[str] = []

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        order.append(layers[module])
        x, y = (v.train if isinstance(v, Signal) else v for v in (inputs[0], output))
        if not found and not y.isfinite().all():
            given = "" if x.isfinite().all() else ", whose input is not finite already"
            found.append(f"in the output of {layers[module]} ({type(module).__name__}){given}")

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


def names_not_finite(terms: Mapping[str, Tensor]) -> list[str]:
    """The terms that are not finite, by name."""
    return [name for name, value in terms.items() if not bool(value.isfinite())]


def firing(network: nn.Module, x: Tensor) -> Ledger:
    """How often the neurons of a network fire in evaluation mode; x [T, B, ...]."""
    ledger = Ledger()
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            Meter(ledger)(network, x)
    finally:
        network.train(was_training)
    return ledger


def stuck(rates: Mapping[str, float], spiking: bool) -> dict[str, str]:
    """The layers that can't learn, and what they do: "never fires" or, where a unit that always fires is stuck, so."""
    says = {0.0: "never fires"} | ({1.0: "fires at every step"} if spiking else {})
    return {layer: says[rate] for layer, rate in rates.items() if rate in says}
