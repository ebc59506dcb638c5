"""Piece 1: the numbers of the method on a device, against the published ones and against a processor's, in float64."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from figures import Figures
from torch import Tensor, nn

import spikerate
from spikerate import BPTT, LIF, OTTT, SLTT, ATan, Branched, Dspike, RateBP, SelfDistillation, deepconv_branches
from spikerate.data import Augment

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from support.golden import Golden, T
from support.networks import every_layer, gradients, small_network
from support.networks import golden_branched as branched
from support.networks import golden_network as plain

RULES: dict[str, tuple[Any, float]] = {
    "bptt_m": (BPTT(), 1),
    "bptt_s": (BPTT(chunk=1), 1),
    "rate_m": (RateBP(), 1 / T),
    "rate_s": (RateBP(chunk=1), 1 / T),
    "esd": (RateBP(), 1 / T),
}
NEURONS: dict[str, Callable[[], nn.Module]] = {
    "soft": lambda: LIF(0.5, threshold=0.7),
    "hard": lambda: LIF(0.5, threshold=0.7, v_reset=0.0),
    "soft, reset in the graph": lambda: LIF(0.5, threshold=0.7, detach_reset=False, surrogate=ATan()),
    "hard, reset in the graph": lambda: LIF(0.5, threshold=0.7, v_reset=-0.2, detach_reset=False, surrogate=Dspike()),
}
ONLINE = [SLTT(), SLTT(chunk=1), OTTT(decay=0.5), OTTT(chunk=1, decay=0.5)]
KINDS = [BPTT(), BPTT(chunk=1), BPTT(chunk=2), RateBP(), RateBP(chunk=1), RateBP(chunk=2), *ONLINE]
COMPILED = [RateBP(), BPTT(), RateBP(chunk=1), SLTT(chunk=1), OTTT(chunk=1, decay=0.5)]
MODELS = ("resnet18", "resnet19", "resnet20", "preact_resnet18", "sew_resnet18", "vgg11", "vggsnn")
AUGMENTS = {
    "crop and flip": Augment(crop=4, flip=True),
    "AutoAugment": Augment(autoaugment="cifar10"),
    "roll, rotation, Cutout": Augment(roll=3, rotation=15, cutout=8),
    "one of three": Augment(roll=3, rotation=15, cutout=8, one_of=True),
}


def compiled(rule: Any) -> Any:
    """The rule as one graph, with no graph of another that counts against the compiler's limit."""
    torch.compiler.reset()
    return torch.compile(rule, fullgraph=True, dynamic=False)


def golden(name: str, device: torch.device, prepare: Callable[[Any], Any]) -> None:
    """One training step gives the published implementation's logits, loss, gradients and running statistics to 1e-6."""
    rule, scale = RULES[name]
    step = Golden(name, branched() if name == "esd" else plain())
    step.arrays = {key: value.to(device) for key, value in step.arrays.items()}
    step.network.to(device)
    out = prepare(rule)(step.network, step["x"].expand(T, *step["x"].shape))
    outputs = [*out.exits, out.rate]
    loss = SelfDistillation()(outputs, step["y"])["loss"] if name == "esd" else F.cross_entropy(out.rate, step["y"])
    (loss * scale).backward()
    step.check(out.rate, "logits")
    step.check(loss, "loss")
    step.check_step()


def one_step(network: nn.Module, rule: Any, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Steps, exits and gradients of a weighted sum of the output."""
    out = rule(network, x)
    loss = (out.rate * weights.to(x)).sum() + sum(e.sum() for e in out.exits)
    return {"steps": out.steps.detach()} | gradients(network, loss)


def same_as_cpu(network: nn.Module, rule: Any, x: Tensor, device: torch.device, prepare: Callable[[Any], Any]) -> float:
    """The largest relative error of output and gradients on the device against the processor's, which is under 1e-9."""
    network = network.double()
    there = copy.deepcopy(network).to(device)
    classes = rule(copy.deepcopy(network), x).rate.shape[1]
    weights = torch.randn(x.shape[1], classes, dtype=torch.float64)
    here = one_step(network, rule, x, weights)
    found = one_step(there, prepare(rule), moved(x, device), weights)
    worst = 0.0
    for name, value in here.items():
        error = float((found[name].cpu() - value).abs().max() / value.abs().max().clamp(min=1e-9))
        assert error < 1e-9, f"{name}: relative error {error:.1e}"
        worst = max(worst, error)
    return worst


def moved(x: Tensor, device: torch.device) -> Tensor:
    """To the device; an image shown T times stays a view."""
    return x[0].to(device).expand_as(x) if x.stride(0) == 0 else x.to(device)


def both_inputs(*shape: int) -> dict[str, Tensor]:
    """An image shown three times, and three frames."""
    x = torch.rand(3, *shape, dtype=torch.float64)
    return {"image": x[0].expand_as(x), "frames": x}


def every_rule(
    device: torch.device, neuron: Callable[[], nn.Module], prepare: Callable[[Any], Any], kinds: list[Any]
) -> Any:
    """Convolution, batch norm and neurons, by every rule."""
    worst = {}
    for rule in kinds:
        for what, x in both_inputs(4, 2, 6, 6).items():
            worst[f"{rule}, {what}"] = same_as_cpu(small_network(neuron), rule, x * 2, device, prepare)
    return worst


def every_kind_of_layer(device: torch.device) -> Any:
    """All layers that a signal goes through, but dropout, whose masks are the device's own."""
    worst = {}
    for rule in (BPTT(), RateBP(), RateBP(chunk=1)):
        layers = [
            m for m in every_layer(2, lambda: LIF(0.5, threshold=0.6)) if not isinstance(m, (nn.Dropout, nn.Dropout2d))
        ]
        x = both_inputs(4, 2, 8, 8)["image"]
        worst[str(rule)] = same_as_cpu(nn.Sequential(*layers), rule, x, device, lambda rule: rule)
    return worst


def model(name: str, device: torch.device) -> float:
    """A network of the library with branches, by ESD's gradient."""
    body = getattr(spikerate, name)(num_classes=5, in_channels=3, width=4, **({"size": 16} if name == "vggsnn" else {}))
    network = Branched(body, deepconv_branches(body, (3, 16, 16), 5))
    return same_as_cpu(network, RateBP(), both_inputs(4, 3, 16, 16)["image"] * 2, device, lambda rule: rule)


def augmented(name: str, device: torch.device) -> Any:
    """A device gives the images that a processor gives, but for a few at the edge of a rounding."""
    images = torch.randint(0, 256, (32, 3, 32, 32)).float() / 255
    images = F.avg_pool2d(images, 3, 1, 1)
    shares = []
    for seed in range(6):
        here, there = AUGMENTS[name](images, seed), AUGMENTS[name](images.to(device), seed).cpu()
        assert there.isfinite().all()
        shares.append(float(((here - there).abs() > 2 / 255).float().mean()))
    assert max(shares) < 0.02, f"shares of pixels that differ: {shares}"
    return shares


def refused_nothing(device: torch.device) -> None:
    """Operations that PyTorch refuses where all is to be deterministic are not in an augmented step."""
    torch.use_deterministic_algorithms(True)
    try:
        for augment in AUGMENTS.values():
            augment(torch.rand(16, 3, 32, 32, device=device), 3)
        network = small_network().to(device)
        RateBP()(network, torch.rand(3, 4, 2, 6, 6, device=device)).rate.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def never_waits(device: torch.device) -> None:
    """No operation of a training step waits for the GPU."""
    if device.type != "cuda":
        return
    network = small_network().to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    x, y = torch.rand(3, 4, 2, 6, 6, device=device), torch.zeros(4, dtype=torch.int64, device=device)
    for mode in ("default", "default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for rule in KINDS:
                F.cross_entropy(rule(network, x).rate, y).backward()
                optimizer.step()
                optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def saved_bytes(device: torch.device) -> dict[str, int]:
    """What RateBP keeps for the backward pass does not grow with T."""
    network = spikerate.resnet18(width=8).to(device)
    found = {}
    for steps in (2, 8):
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.rand(4, 3, 16, 16, device=device)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = RateBP()(network, x.expand(steps, *x.shape))
        found[f"T = {steps}"] = sum(saved.values())
        del out
    assert len(set(found.values())) == 1, found
    return found


def half_precision(device: torch.device) -> dict[str, float]:
    """Gradients under bf16 autocast point where those of float32 point."""
    found = {}
    for rule in (RateBP(), BPTT()):
        network = spikerate.resnet18(width=16).to(device).to(memory_format=torch.channels_last)
        x = torch.rand(32, 3, 32, 32, device=device) * 2
        each = []
        for enabled in (False, True):
            again = copy.deepcopy(network)
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                rate = rule(again, x.expand(4, *x.shape)).rate
            each.append(torch.cat([g.flatten() for g in gradients(again, rate.float().square().sum()).values()]))
        found[str(rule)] = float(F.cosine_similarity(each[0], each[1], dim=0))
        assert found[str(rule)] > 0.5, found
    return found


def main() -> None:
    """As the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="leave out most of what is compiled")
    args = parser.parse_args()
    device, figures = torch.device(args.device), Figures(args.out)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def attempt(name: str, what: Callable[[], Any]) -> None:
        torch.manual_seed(0)
        figures.attempt(name, what)

    def eager(rule: Any) -> Any:
        return rule

    for name in RULES:
        attempt(f"golden {name}", partial(golden, name, device, eager))
    for name, neuron in NEURONS.items():
        attempt(f"every rule, {name}", partial(every_rule, device, neuron, eager, KINDS))
    attempt("every layer", partial(every_kind_of_layer, device))
    for name in MODELS:
        attempt(f"model {name}", partial(model, name, device))
    for name in AUGMENTS:
        attempt(f"augment {name}", partial(augmented, name, device))
    attempt("deterministic: nothing refused", partial(refused_nothing, device))
    attempt("a step never waits", partial(never_waits, device))
    attempt("saved bytes", partial(saved_bytes, device))
    attempt("bf16", partial(half_precision, device))
    for name in ("rate_m",) if args.small else RULES:
        attempt(f"golden {name}, compiled", partial(golden, name, device, compiled))
    if not args.small:
        attempt("every rule, soft, compiled", partial(every_rule, device, NEURONS["soft"], compiled, COMPILED))


if __name__ == "__main__":
    main()
