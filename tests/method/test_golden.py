"""One training step against the published implementations' numbers, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from spikerate import BPTT, RateBP, RateCoded, SelfDistillation
from spikerate.losses import reliable_teacher
from support.golden import Golden, T
from support.networks import golden_branched, golden_network


@pytest.mark.parametrize(
    ("name", "rule", "scale"),
    [("bptt_m", BPTT(), 1), ("bptt_s", BPTT(chunk=1), 1), ("rate_m", RateBP(), 1 / T), ("rate_s", RateBP(chunk=1), 1 / T)],
)
def test_rules(name: str, rule: BPTT | RateBP, scale: float) -> None:
    step = Golden(name, golden_network())
    logits = rule(step.network, step.x).rate
    loss = F.cross_entropy(logits, step["y"])
    (loss * scale).backward()
    step.check(logits, "logits")
    step.check(loss, "loss")
    step.check_step()


def test_self_distillation() -> None:
    step = Golden("esd", golden_branched())
    out = RateBP()(step.network, step.x)
    outputs = [*out.exits, out.rate]
    terms = SelfDistillation(alpha=1.0, beta=0.3, tau=3.0)(outputs, step["y"])
    (terms["loss"] / T).backward()
    for logits, name in zip(outputs, ["branch1", "branch2", "logits"], strict=True):
        step.check(logits, name)
    step.check(reliable_teacher(torch.stack(outputs), step["y"])[0], "teacher")
    step.check(terms["ce"], "hard")
    step.check(terms["kl"], "soft")
    step.check(terms["loss"], "loss")
    step.check_step()


@pytest.mark.parametrize("name", ["rate_m", "esd"])
def test_rates_and_gain(name: str) -> None:
    step = Golden(name, golden_network())
    seen: dict[str, RateCoded] = {}

    def note(where: str) -> None:
        module = step.network.get_submodule(where)
        module.register_forward_hook(lambda m, args, out: seen.update({where: out}))

    note("stem")
    note("stages.layer3.bn2")
    note("stages.layer3.lif2")
    RateBP()(step.network, step.x)
    step.check(seen["stem"].rate, "rate_stem")
    step.check(seen["stages.layer3.lif2"].rate, "rate_layer3")
    rate = seen["stages.layer3.lif2"].rate
    assert rate.grad_fn is not None
    step.check(rate.grad_fn.saved_tensors[0], "elig_layer3")
