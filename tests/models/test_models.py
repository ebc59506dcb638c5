"""Networks: published sizes, shapes, branches, costs, and the same names as an ANN."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spikerate import (
    BPTT,
    LIF,
    OTTT,
    SLTT,
    Branched,
    CheckFinite,
    RateBP,
    Sigmoid,
    Staged,
    airbench,
    deepconv_branches,
    macs,
    max_resnet18,
    ms_resnet18,
    ms_resnet34,
    preact_resnet18,
    preact_resnet34,
    qkformer,
    resnet18,
    resnet19,
    resnet20,
    resnet34,
    sew_resnet18,
    sew_resnet34,
    spike_driven_transformer,
    spikformer,
    vgg11,
    vgg13,
    vgg16,
    vggsnn,
)
from spikerate.measure.meter import Meter, Trains
from spikerate.models import stage_shapes
from spikerate.models.fold import fold_batch_norm
from spikerate.models.max_resnet import MaxBlock
from spikerate.models.membrane import MembraneBlock
from spikerate.models.preact import PreActBlock
from spikerate.models.residual import residual_stem
from spikerate.models.sew import SEWBlock
from spikerate.models.staged import mean_head
from support.networks import gradients

NETWORKS: dict[str, tuple[Any, int]] = {  # and the image size that gives each stage more than one place
    **{f.__name__: (f, 16) for f in (resnet18, resnet34, resnet19, resnet20)},
    **{f.__name__: (f, 16) for f in (preact_resnet18, preact_resnet34, sew_resnet18, sew_resnet34)},
    **{f.__name__: (f, 16) for f in (ms_resnet18, max_resnet18)},
    **{f"{f.__name__}-7x7": (partial(f, stem="7x7"), 64) for f in (resnet18, preact_resnet18, sew_resnet18)},
    **{f.__name__: (f, 32) for f in (vgg11, vgg13, vgg16, vggsnn, airbench)},
    "vggsnn-dvs": (partial(vggsnn, size=48), 48),
    "spikformer": (partial(spikformer, depth=2), 8),
    "spike_driven_transformer": (partial(spike_driven_transformer, depth=1), 8),
    "qkformer": (partial(qkformer, depth=3), 8),
}
STEMMED = [
    *(resnet18, resnet34, preact_resnet18, preact_resnet34, sew_resnet18, sew_resnet34, ms_resnet18, ms_resnet34),
    max_resnet18,
]
every_network = pytest.mark.parametrize(("make", "size"), NETWORKS.values(), ids=NETWORKS)


MATES = [BPTT(), BPTT(chunk=1), RateBP(), RateBP(chunk=1), SLTT(), OTTT(chunk=1), CheckFinite(BPTT()), Meter(Trains())]


@every_network
def test_in_evaluation_a_sample_does_not_depend_on_its_batch_mates(make: Any, size: int) -> None:
    """Not on who they are, how many, nor on its place among them: under every rule."""
    network = make(in_channels=2, width=2, activation=partial(LIF, threshold=0.3)).double()
    x = torch.rand(2, 4, 2, size, size, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(8):
            BPTT()(network, x)  # running statistics by which its layers fire
    network.eval()
    place = torch.tensor([2, 0, 3, 1])
    mates = torch.cat([x[:, :1], 5 * torch.randn_like(x[:, 1:])], 1)
    for rule in MATES:
        whole = rule(network, x).train.detach()
        assert whole[:, 0].std() > 0
        torch.testing.assert_close(rule(network, x[:, :1]).train[:, 0], whole[:, 0])
        torch.testing.assert_close(rule(network, mates).train[:, 0], whole[:, 0])
        torch.testing.assert_close(rule(network, x[:, place]).train, whole[:, place])


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    with torch.device("meta"):
        body = resnet18()
    assert parameters(body) == 11_173_962
    assert parameters(*deepconv_branches(body, (3, 32, 32), 10).values()) == 1_213_214


@pytest.mark.parametrize("make", STEMMED)
def test_imagenet_parameter_counts_are_the_published_ones(make: Any) -> None:
    with torch.device("meta"):
        body = make(num_classes=1000, stem="7x7")
    assert parameters(body) == (11_689_512 if "18" in make.__name__ else 21_797_672)


def layer(i: int, o: int, kernel: int = 3) -> int:
    """Parameters of a convolution without bias and its batch norm."""
    return i * o * kernel**2 + 2 * o


def residual(channels: list[int], blocks: list[int]) -> int:
    """Parameters of a 3x3 stem for colour images and stages of basic blocks."""
    total, before = layer(3, channels[0]), channels[0]
    for after, n in zip(channels, blocks, strict=True):
        total += layer(before, after) + (2 * n - 1) * layer(after, after)
        total += layer(before, after, 1) if before != after else 0
        before = after
    return total


def plain(channels: list[int]) -> int:
    return sum(layer(i, o) for i, o in zip([3, *channels], channels, strict=False))


W = 64
COUNTS: list[tuple[Any, int]] = [
    *((make, residual([64, 128, 256, 512], [2, 2, 2, 2]) + 513 * 10) for make in STEMMED[::2]),
    *((make, residual([64, 128, 256, 512], [3, 4, 6, 3]) + 513 * 10) for make in STEMMED[1::2]),
    (resnet19, residual([128, 256, 512], [3, 3, 2]) + 513 * 256 + 257 * 10),
    (resnet20, residual([16, 32, 64], [3, 3, 3]) + 65 * 10),
    (vgg11, plain([W, 2 * W, 4 * W, 4 * W, *[8 * W] * 4]) + 513 * 10),
    (vgg13, plain([W, W, 2 * W, 2 * W, 4 * W, 4 * W, *[8 * W] * 4]) + 513 * 10),
    (vgg16, plain([W, W, 2 * W, 2 * W, *[4 * W] * 3, *[8 * W] * 6]) + 513 * 10),
    (vggsnn, plain([W, 2 * W, 4 * W, 4 * W, *[8 * W] * 4]) + (8 * W * 2 * 2 + 1) * 10),
]


@pytest.mark.parametrize(("make", "count"), COUNTS)
def test_parameter_counts_by_hand(make: Any, count: int) -> None:
    with torch.device("meta"):
        assert parameters(make()) == count


def test_resnet20_has_the_published_count_but_for_its_projections() -> None:
    projections = layer(16, 32, 1) + layer(32, 64, 1)
    assert parameters(resnet20()) - projections == 269_722


FREE = [make for name, (make, _) in NETWORKS.items() if "vggsnn" not in name and "34" not in name]


@pytest.mark.parametrize("make", FREE)
@pytest.mark.parametrize("size", [8, 17])
def test_width_channels_classes_and_size_are_free(make: Any, size: int) -> None:
    network = make(num_classes=7, in_channels=2, width=3)
    x = torch.rand(2, 4, 2, size, size + 3)
    assert BPTT()(network, x).steps.shape == (2, 4, 7)


def test_vggsnn_has_a_size() -> None:
    for size in (16, 48):
        x = torch.rand(2, 2, 2, size, size)
        assert BPTT()(vggsnn(num_classes=7, in_channels=2, width=3, size=size), x).steps.shape == (2, 2, 7)
    for wrong in (0, 40):
        with pytest.raises(ValueError, match=f"size is {wrong}: give a"):
            vggsnn(size=wrong)


@every_network
def test_an_ann_has_the_same_parameter_names(make: Any, size: int) -> None:
    ann, snn = make(width=2, activation="relu"), make(width=2)
    assert list(ann.state_dict()) == list(snn.state_dict())
    ann.load_state_dict(snn.state_dict())
    assert ann(torch.rand(2, 3, size, size)).shape == (2, 10)
    assert not any(isinstance(m, LIF) for m in ann.modules())
    relus = [name for name, m in ann.named_modules() if isinstance(m, nn.ReLU)]
    assert relus == [name for name, m in snn.named_modules() if isinstance(m, LIF)]


class Spikes:
    """The output of every neuron of a network, by its path."""

    def __init__(self, network: nn.Module) -> None:
        self.signals: dict[str, Any] = {}
        for name, module in network.named_modules():
            if isinstance(module, LIF):
                module.register_forward_hook(self.keeper(name))

    def keeper(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self.signals[name] = output

        return keep


@every_network
def test_rate_has_the_values_of_bptt(make: Any, size: int) -> None:
    network = make(width=2)
    x = torch.rand(2, 3, size, size).expand(2, 2, 3, size, size)
    seen = []
    for rule in (BPTT(), RateBP()):
        spikes = Spikes(network)
        seen.append((rule(network, x), spikes.signals))
    (bptt, unrolled), (rate, coded) = seen
    assert torch.allclose(rate.rate, bptt.rate, atol=1e-6)
    assert torch.allclose(rate.rate, rate.steps.mean(0), atol=1e-6)
    assert unrolled.keys() == coded.keys()
    for name in unrolled:
        assert torch.equal(coded[name].steps, unrolled[name].steps), name
        assert torch.allclose(coded[name].rate, coded[name].steps.mean(0)), name
    assert sum(s.steps.sum() for s in coded.values()) > 0


@every_network
def test_rate_has_the_gradient_of_bptt_at_one_step(make: Any, size: int) -> None:
    network = make(width=2, activation=partial(LIF, threshold=0.5)).double()
    x, y = torch.rand(1, 2, 3, size, size, dtype=torch.float64), torch.tensor([1, 2])
    rate, bptt = (gradients(network, F.cross_entropy(rule(network, x).rate, y)) for rule in (RateBP(), BPTT()))
    for name in bptt:
        assert torch.allclose(rate[name], bptt[name], rtol=1e-8, atol=1e-12), name
    assert all(bptt[name].abs().sum() > 0 for name in bptt if name.endswith("conv1.weight"))


@pytest.mark.parametrize("residual", [False, True])
@every_network
def test_branches_at_every_boundary_train_the_body(make: Any, size: int, residual: bool) -> None:
    body = make(width=2)
    network = Branched(body, deepconv_branches(body, (3, size, size), 10, residual))
    assert list(network.branches) == list(body.stages)[:-1]
    out = RateBP()(network, torch.rand(2, 3, 3, size, size))
    assert [e.shape for e in (*out.exits, out.rate)] == [(3, 10)] * len(body.stages)
    y = torch.arange(3)
    loss = sum((F.cross_entropy(e, y) for e in out.exits), F.cross_entropy(out.rate, y))
    given = gradients(network, loss)
    assert all(g.isfinite().all() for g in given.values())
    assert all(given[name].abs().sum() > 0 for name in given if name.startswith("branches") and name.endswith("weight"))
    first = next(name for name in given if name.startswith("body."))
    assert given[first].abs().sum() > 0


def test_the_imagenet_branches_have_a_residual_block_after_each_deepconv() -> None:
    with torch.device("meta"):
        body = preact_resnet34(num_classes=1000, stem="7x7")
    branches = deepconv_branches(body, (3, 224, 224), 1000, residual=True)
    light = deepconv_branches(body, (3, 224, 224), 1000)
    for k, name in enumerate(branches):
        blocks = sum(2 * layer(c, c) for c in (128, 256, 512)[k:])
        assert parameters(branches[name]) - parameters(light[name]) == blocks
    kinds = [type(m).__name__ for m in branches["stage2"]]  # type: ignore[attr-defined]
    assert kinds[:4] == ["DeepConv", "BasicBlock"] * 2
    assert branches["stage3"](torch.rand(2, 256, 14, 14)).shape == (2, 1000)


def test_a_preact_stream_is_real_valued_and_sew_counts_spikes() -> None:
    x = torch.rand(2, 4, 3, 16, 16)
    taps = {}
    for make in (preact_resnet18, sew_resnet18, resnet18):
        body = make(width=4, activation=partial(LIF, threshold=0.2))
        body.stages["stage4"].register_forward_hook(lambda m, args, out, make=make: taps.update({make: out.steps}))
        BPTT()(body, x)
    assert (taps[preact_resnet18] < 0).any()
    assert torch.equal(taps[sew_resnet18], taps[sew_resnet18].round()) and taps[sew_resnet18].max() >= 2
    assert set(taps[resnet18].unique().tolist()) <= {0.0, 1.0}


def by_hand(block: MembraneBlock, x: Tensor) -> Tensor:
    """A block in evaluation mode, of x [T, B, C, H, W], step by step with the neuron's equations and soft reset."""
    pool = block.pool if isinstance(block, MaxBlock) else nn.Identity()
    potentials: dict[nn.Module, Tensor | float] = {block.activation1: 0.0, block.activation2: 0.0}

    def fire(neuron: Any, current: Tensor) -> Tensor:
        v = neuron.decay * potentials[neuron] + current
        spikes = (v >= neuron.threshold).to(v.dtype)
        potentials[neuron] = v - neuron.threshold * spikes
        return spikes

    steps = []
    for step in x:
        current = pool(block.bn1(block.conv1(fire(block.activation1, step))))
        steps.append(block.bn2(block.conv2(fire(block.activation2, current))) + block.shortcut(pool(step)))
    return torch.stack(steps)


@pytest.mark.parametrize("kind", [MembraneBlock, MaxBlock])
@pytest.mark.parametrize(("before", "after", "stride"), [(3, 3, 1), (3, 4, 2), (3, 3, 2)])
def test_a_membrane_block_adds_currents_at_each_step(kind: Any, before: int, after: int, stride: int) -> None:
    block = kind(before, after, stride, partial(LIF, decay=0.5, threshold=0.3)).double()
    x = torch.randn(4, 2, before, 9, 6, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(4):
            BPTT()(block, x)
        block.eval()
        expected = by_hand(block, x)
        assert expected.shape == (4, 2, after, -(-9 // stride), -(-6 // stride)) and expected.std() > 0
        for rule in (BPTT(), RateBP(), RateBP(chunk=1)):
            torch.testing.assert_close(rule(block, x).train, expected)


def test_membrane_and_preact_differ_in_the_projections_only() -> None:
    preact, membrane = (make(width=3, activation=partial(LIF, threshold=0.3)) for make in (preact_resnet18, ms_resnet18))
    membrane.load_state_dict(preact.state_dict())
    x, taps = torch.rand(2, 4, 3, 16, 16), dict[str, list[Tensor]](stage1=[], stage2=[])
    for body in (preact, membrane):
        for name, kept in taps.items():
            body.stages[name].register_forward_hook(lambda m, args, out, kept=kept: kept.append(out.steps))
        BPTT()(body, x)
    assert torch.equal(*taps["stage1"])
    assert not torch.equal(*taps["stage2"])


def test_max_pools_halve_what_strides_halve_elsewhere() -> None:
    body = max_resnet18(width=4)
    strides = {m.stride for m in body.modules() if isinstance(m, nn.Conv2d)}
    pools = {name: m.stride for name, m in body.named_modules() if isinstance(m, nn.MaxPool2d)}
    assert strides == {(1, 1)}
    assert pools == {"stem.2": 1} | {f"stages.stage{k}.0.pool": 2 for k in (2, 3, 4)}
    for size in ((3, 33, 20), (3, 32, 32), (3, 5, 1)):
        assert stage_shapes(body, size) == stage_shapes(resnet18(width=4), size)
    large = max_resnet18(width=4, stem="7x7")
    assert stage_shapes(large, (3, 65, 70)) == stage_shapes(resnet18(width=4, stem="7x7"), (3, 65, 70))
    assert sum(isinstance(m, nn.MaxPool2d) for m in large.stem.modules()) == 1


def test_macs_of_max_resnet18_are_those_of_resnet18_and_three_convolutions_at_twice_the_side() -> None:
    with torch.device("meta"):
        bodies = resnet18(), max_resnet18()
    strided, pooled = (macs(body, (3, 32, 32)) for body in bodies)
    more = {f"stage{k}": 3 * 9 * (32 // 2 ** (k - 1)) ** 2 * 64**2 * 2 ** (2 * k - 3) for k in (2, 3, 4)}
    assert pooled == {name: count + more.get(name, 0) for name, count in strided.items()}


def test_the_training_forward_of_the_new_blocks_is_one_graph() -> None:
    torch.compiler.reset()
    blocks = {"preact": PreActBlock(2, 4, 2, LIF), "sew": SEWBlock(4, 8, 2, LIF), "max": MaxBlock(8, 8, 2, LIF)}
    body = Staged(residual_stem("7x7", 3, 2), blocks, mean_head(nn.Linear(8, 10)))
    network = Branched(body, deepconv_branches(body, (3, 32, 32), 10))
    x = torch.rand(2, 3, 32, 32).expand(2, 2, 3, 32, 32)
    traced = torch.compile(RateBP(), fullgraph=True, backend="eager")(network, x)
    again = RateBP()(network, x)
    for a, b in zip((*traced.exits, traced.rate), (*again.exits, again.rate), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_macs_by_hand() -> None:
    stages = {
        "a": nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.BatchNorm2d(6), LIF()),
        "b": nn.Sequential(nn.Conv2d(6, 5, 1, bias=False), LIF(), nn.MaxPool2d(2)),
    }
    head = nn.Sequential(nn.Flatten(), nn.Linear(5 * 2 * 2, 7))
    body = Staged(nn.Conv2d(3, 4, 3, 1, 1), stages, head)
    expected = {"stem": 8 * 8 * 4 * 3 * 9, "a": 4 * 4 * 6 * 2 * 9, "b": 4 * 4 * 5 * 6, "head": 20 * 7}
    assert macs(body, (3, 8, 8)) == expected
    assert list(macs(body, (3, 8, 8))) == ["stem", "a", "b", "head"]
    assert all(p.device.type == "cpu" and p.grad is None for p in body.parameters())


def test_macs_of_resnet18_and_its_branches() -> None:
    with torch.device("meta"):
        body = resnet18()
    cost = macs(body, (3, 32, 32))
    assert cost["stem"] == 32 * 32 * 64 * 3 * 9
    assert cost["stage1"] == 4 * 32 * 32 * 64 * 64 * 9
    assert cost["stage4"] == 4 * 4 * 512 * (256 * 9 + 3 * 512 * 9 + 256)
    assert cost["head"] == 5120
    assert sum(cost.values()) == pytest.approx(0.5555e9, rel=1e-3)
    branches, shapes = deepconv_branches(body, (3, 32, 32), 10), stage_shapes(body, (3, 32, 32))
    with FlopCounterMode(display=False) as counter:
        for shape, branch in zip(shapes, branches.values(), strict=False):
            branch.to("meta").eval()(torch.empty(shape, device="meta"))
    assert counter.get_total_flops() / 2 / sum(cost.values()) == pytest.approx(0.058, abs=5e-4)


def test_macs_of_imagenet_resnets_are_the_published_ones() -> None:
    for make, published in ((resnet18, 1.81e9), (resnet34, 3.66e9)):
        with torch.device("meta"):
            body = make(num_classes=1000, stem="7x7")
        assert sum(macs(body, (3, 224, 224)).values()) == pytest.approx(published, rel=5e-3)


def test_resnet19_has_its_blocks_and_its_hidden_layer() -> None:
    body = resnet19(width=4)
    assert [len(stage) for stage in body.stages.values()] == [3, 3, 2]  # type: ignore[arg-type]
    assert [type(m).__name__ for m in body.head] == ["AdaptiveAvgPool2d", "Flatten", "Linear", "LIF", "Linear"]  # type: ignore[union-attr]
    assert [len(b) - 3 for b in deepconv_branches(body, (3, 32, 32), 10).values()] == [2, 1]  # type: ignore[arg-type]


def test_stage_shapes_leave_the_network_alone() -> None:
    body = resnet18(width=4)
    before = {k: v.clone() for k, v in body.state_dict().items()}
    assert [s[1:] for s in stage_shapes(body, (3, 33, 20))] == [(4, 33, 20), (8, 17, 10), (16, 9, 5), (32, 5, 3)]
    assert all(torch.equal(before[k], v) for k, v in body.state_dict().items())


def any_staged() -> Staged:
    """A network that is not ours: odd channels, a pool, stages without a stride."""
    stages = {
        "a": nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), LIF()),
        "b": nn.Sequential(nn.Conv2d(5, 7, 1), nn.BatchNorm2d(7), LIF(), nn.MaxPool2d(2)),
        "c": nn.Sequential(nn.Conv2d(7, 6, 3, 2), nn.BatchNorm2d(6), LIF()),
    }
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    return Staged(nn.Conv2d(1, 4, 1), stages, head)


@pytest.mark.parametrize("rule", [RateBP(), RateBP(chunk=1), RateBP(chunk=2), BPTT(), BPTT(chunk=1)], ids=str)
def test_branches_of_any_staged_network(rule: Any) -> None:
    body = any_staged()
    network = Branched(body, deepconv_branches(body, (1, 12, 12), 4))
    x = torch.rand(3, 2, 1, 12, 12)
    out = rule(network, x)
    assert [e.shape for e in out.exits] == [(2, 4), (2, 4)]
    sum(e.square().sum() for e in out.exits).backward()
    stem = body.stem.weight
    assert stem.grad is not None and stem.grad.abs().sum() > 0, "a branch's loss trains the body"  # type: ignore[union-attr]
    network.eval()
    plain = rule(body.eval(), x)
    assert rule(network, x).exits == ()
    assert torch.equal(rule(network, x).steps, plain.steps)


def test_branches_see_the_rate_over_all_chunks() -> None:
    body = any_staged().eval()
    x = torch.rand(5, 2, 1, 12, 12)
    whole = Branched(body, {"a": nn.Flatten()})
    whole.training = True
    expected = BPTT()(whole, x).exits[0]
    for rule in (RateBP(), RateBP(chunk=2), BPTT(chunk=2), BPTT(chunk=1)):
        assert torch.allclose(rule(whole, x).exits[0], expected)


def test_what_can_not_be_branched() -> None:
    body = any_staged()
    with pytest.raises(ValueError, match=r"branches at \['z'\], but the stages are \['a', 'b', 'c'\]"):
        Branched(body, {"z": nn.Identity()})
    with pytest.raises(ValueError, match="give at least two"):
        deepconv_branches(Staged(nn.Identity(), {"a": LIF()}, nn.Flatten()), (1, 4, 4), 2)
    with pytest.raises(ValueError, match=r"need \[B, C, H, W\]"):
        deepconv_branches(Staged(nn.Flatten(), {"a": LIF(), "b": LIF()}, nn.Identity()), (1, 4, 4), 2)
    with pytest.raises(ValueError, match="no stages"):
        Staged(nn.Identity(), {}, nn.Identity())


@pytest.mark.parametrize(("field", "value"), [("width", 0), ("num_classes", 0), ("in_channels", -1)])
@every_network
def test_sizes_out_of_range(make: Any, size: int, field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        make(**{field: value})


@every_network
def test_unknown_activation(make: Any, size: int) -> None:
    with pytest.raises(ValueError, match="activation is 'gelu'"):
        make(width=2, activation="gelu")


@pytest.mark.parametrize("make", STEMMED)
def test_unknown_stem(make: Any) -> None:
    with pytest.raises(ValueError, match="stem is '5x5': give \"3x3\""):
        make(width=2, stem="5x5")


def test_a_stage_needs_a_name_of_its_own() -> None:
    with pytest.raises(ValueError, match="stem and head are names of other parts"):
        Staged(nn.Identity(), {"head": LIF()}, nn.Identity())


def test_branches_train_under_autocast() -> None:
    body = any_staged()
    network = Branched(body, deepconv_branches(body, (1, 12, 12), 4))
    with torch.autocast("cpu", torch.bfloat16):
        out = RateBP()(network, torch.rand(3, 2, 1, 12, 12))
    sum(e.float().sum() for e in out.exits).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.branches.parameters())


# folding ----------------------------------------------------------------------------------------------------------------


def with_statistics(network: nn.Module, *shape: int) -> nn.Module:
    """In evaluation mode, with running statistics that make its layers fire."""
    for _ in range(20):
        BPTT()(network, torch.rand(2, 8, *shape))
    return network.eval()


@pytest.mark.parametrize("make", [resnet18, preact_resnet18, sew_resnet18, vgg11, resnet19], ids=lambda f: f.__name__)
def test_folded_networks_fire_the_same_spikes(make: Any) -> None:
    network = with_statistics(make(width=4), 3, 32, 32)
    image = torch.rand(16, 3, 32, 32)
    x, kept = image.expand(4, *image.shape), copy.deepcopy(network.state_dict())
    with torch.no_grad():
        folded = fold_batch_norm(network)
        assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
        both = Trains(), Trains()
        one, other = (Meter(trains)(n, x).steps for trains, n in zip(both, (network, folded), strict=True))
    spikes = sum(int(train.sum()) for _, train in both[0].kept)
    different = sum(int((a != b).sum()) for (_, a), (_, b) in zip(*(trains.kept for trains in both), strict=True))
    assert spikes > 0 and different <= 1e-3 * spikes
    assert (one - other).abs().mean() <= 1e-2 * one.abs().mean()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in kept.items())


def test_what_can_not_be_folded_stays() -> None:
    shared = nn.Conv2d(2, 2, 1)
    network = nn.Sequential(
        nn.BatchNorm2d(2), shared, nn.BatchNorm2d(2), LIF(), shared, nn.BatchNorm2d(2, track_running_stats=False), LIF(),
        nn.Flatten(), nn.Linear(8, 4), nn.BatchNorm1d(4), LIF(),
    )  # fmt: skip
    network = with_statistics(network, 2, 2, 2)
    folded = fold_batch_norm(network)
    assert [type(m) for m in folded] == [nn.Identity if k == 9 else type(m) for k, m in enumerate(network)]
    with torch.no_grad():
        assert torch.equal(*(BPTT()(n, torch.rand(2, 3, 2, 2, 2)).steps.sum() for n in (folded, folded)))


def test_a_network_whose_calls_depend_on_values_is_refused() -> None:
    class Fickle(nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="the layers of Fickle can't be listed"):
        fold_batch_norm(Fickle())


def test_inference_computes_no_slopes() -> None:
    class Watched(Sigmoid):
        def slope(self, x: Tensor) -> Tensor:
            calls.append(x)
            return super().slope(x)

    calls: list[Tensor] = []
    network = resnet18(width=2, activation=lambda: LIF(surrogate=Watched()))
    x = torch.rand(3, 2, 3, 16, 16)
    whole = BPTT()(network, x).steps
    taken = len(calls)
    with torch.no_grad():
        assert torch.equal(BPTT()(network, x).steps, whole)
    assert taken and len(calls) == taken
