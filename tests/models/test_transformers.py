"""The spiking transformers: attention against the papers' equations written out, published sizes, memory, presets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikerate import (
    BPTT,
    LIF,
    RateBP,
    Sigmoid,
    Staged,
    check,
    qkformer,
    spike_driven_transformer,
    spikformer,
)
from spikerate.exchange.nir import to_nir
from spikerate.models import stage_shapes
from spikerate.models.qk_attention import QKAttention
from spikerate.models.spike_driven import SpikeDrivenAttention
from spikerate.models.spiking_attention import SpikingSelfAttention
from spikerate.runs.config import Model, Neuron
from spikerate.runs.kinds import with_kinds
from spikerate.runs.presets import preset
from support.networks import saved_bytes

MAKERS: list[Callable[..., Staged]] = [spikformer, spike_driven_transformer, qkformer]
every_transformer = pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)

PUBLISHED: dict[str, tuple[Callable[[], Staged], float]] = {  # millions of parameters
    "Spikformer-4-256": (partial(spikformer, width=32), 4.15),
    "Spikformer-2-384": (partial(spikformer, depth=2), 5.76),
    "Spikformer-4-384": (partial(spikformer, heads=12), 9.32),
    "Spikformer-8-384": (partial(spikformer, 1000, depth=8, patch=16), 16.81),
    "Spikformer-8-512": (partial(spikformer, 1000, width=64, depth=8, patch=16), 29.68),
    "Spikformer-8-768": (partial(spikformer, 1000, width=96, depth=8, patch=16), 66.34),
    "SDT-2-512, CIFAR-100": (partial(spike_driven_transformer, 100), 10.28),
    "SDT-8-512": (partial(spike_driven_transformer, 1000, depth=8, patch=16), 29.68),
    "QKFormer, CIFAR-100": (partial(qkformer, 100), 6.74),
    "QKFormer HST-10-384": (partial(qkformer, 1000, depth=10, patch=16), 16.47),
    "QKFormer HST-10-512": (partial(qkformer, 1000, width=64, depth=10, patch=16), 29.08),
    "QKFormer HST-10-768": (partial(qkformer, 1000, width=96, depth=10, patch=16), 64.96),
}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_of_parameters_are_the_published_ones(name: str) -> None:
    make, millions = PUBLISHED[name]
    with torch.device("meta"):
        assert count(make()) / 1e6 == pytest.approx(millions, abs=0.01)  # some are rounded, some cut off


def test_the_numbers_of_parameters_that_docstrings_name() -> None:
    with torch.device("meta"):
        assert count(spikformer()) == 9_320_122
        assert count(spike_driven_transformer(100)) == 10_279_588
        assert count(qkformer(100)) == 6_740_884


# attention against the papers' equations, token by token -----------------------------------------------------------------


def settled(layer: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with running statistics and weights of BN that are not those of a fresh one."""
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.8, 1.6)
            nn.init.uniform_(module.bias, 0, 0.8)
    return layer.double().eval()


def fired(x: Tensor, threshold: float = 1.0) -> Tensor:
    """Spikes of `LIF` at its default settings for the inputs of all steps [T, ...]; a threshold scales with the input."""
    return LIF().spikes(x / threshold)


def as_tokens(layer: Any, x: Tensor) -> Tensor:
    """A convolution and BN of images [T, B, C, H, W] as a linear layer of tokens: [T, B, N, C]."""
    conv, norm = layer[0], layer[1]
    tokens = x.flatten(3).mT @ conv.weight[:, :, 0, 0].T + (0 if conv.bias is None else conv.bias)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (tokens - norm.running_mean) * scale + norm.bias


def spikes_of(layer: Any, x: Tensor) -> Tensor:
    return fired(as_tokens(layer, x))


def ssa_by_hand(a: Any, x: Tensor) -> Tensor:
    q, k, v = (spikes_of(layer, x) for layer in (a.query, a.key, a.value))
    y, d = torch.zeros_like(q), x.shape[2] // a.heads
    for t in range(len(x)):
        for b in range(x.shape[1]):
            for own in (slice(h * d, (h + 1) * d) for h in range(a.heads)):
                y[t, b, :, own] = (q[t, b, :, own] @ k[t, b, :, own].T) @ v[t, b, :, own] * 0.125
    return _out(a, fired(y, 0.5), x)


def sdsa_by_hand(a: Any, x: Tensor) -> Tensor:
    spikes = fired(x)
    q, k, v = (spikes_of(layer, spikes) for layer in (a.query, a.key, a.value))
    return as_tokens(a.out, _image(fired((q * k).sum(2, keepdim=True), 0.5) * v, x)).mT.reshape(x.shape)


def token_by_hand(a: Any, x: Tensor) -> Tensor:
    q, k = spikes_of(a.query, x), spikes_of(a.key, x)
    d = x.shape[2] // a.heads
    y = [fired(q[..., h * d : (h + 1) * d].sum(3, keepdim=True), 0.5) * k[..., h * d : (h + 1) * d] for h in range(a.heads)]
    return _out(a, torch.cat(y, 3), x)


def channel_by_hand(a: Any, x: Tensor) -> Tensor:
    return _out(a, fired(spikes_of(a.query, x).sum(2, keepdim=True), 0.5) * spikes_of(a.key, x), x)


def _image(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.mT.reshape(like.shape)


def _out(a: Any, tokens: Tensor, x: Tensor) -> Tensor:
    return _image(spikes_of(a.out, _image(tokens, x)), x)


ATTENTIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor]]] = {
    "SSA": (lambda: SpikingSelfAttention(12, 3, LIF), ssa_by_hand),
    "SSA, one head": (lambda: SpikingSelfAttention(12, 1, LIF), ssa_by_hand),
    "SDSA": (lambda: SpikeDrivenAttention(12, LIF), sdsa_by_hand),
    "Q-K, tokens": (lambda: QKAttention(12, 2, LIF), token_by_hand),
    "Q-K, channels": (lambda: QKAttention(12, 2, LIF, "channel"), channel_by_hand),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_is_that_of_the_papers_equations(name: str) -> None:
    torch.manual_seed(3)
    make, by_hand = ATTENTIONS[name]
    attention = settled(make())
    x = torch.randint(0, 3, (4, 2, 12, 2, 3)).double()
    with torch.no_grad():
        expected = by_hand(attention, x)
        assert expected.any() and expected.std() > 0
        for rule in (BPTT(), RateBP()):
            torch.testing.assert_close(rule(attention, x).rate, expected.mean(0))
        torch.testing.assert_close(BPTT()(attention, x).steps, expected)


def test_the_attentions_neurons_see_twice_the_input_and_get_gradients_at_each_step() -> None:
    """Half the threshold for unchanged input gives the same spikes."""
    attention = settled(SpikingSelfAttention(4, 2, LIF))
    half = settled(SpikingSelfAttention(4, 2, LIF))
    half.load_state_dict(attention.state_dict())
    half.scale, half.attend = attention.scale / 2, LIF(threshold=0.5)
    x = torch.randint(0, 2, (6, 3, 4, 3, 3)).double()
    assert torch.equal(BPTT()(attention, x).steps, BPTT()(half, x).steps)


# attention against SpikingJelly's ----------------------------------------------------------------------------------------


def papers_neuron(alpha: float = 2.0) -> LIF:
    """SpikingJelly's `LIFNode(tau=2)`, which takes half of its input: threshold and surrogate are twice as wide here."""
    return LIF(0.5, threshold=2.0, v_reset=0.0, surrogate=Sigmoid(alpha))


def put(conv: Any, norm: Any, layers: list[Any]) -> None:
    """Give a convolution and BN the weights of several of ours, one after the other."""
    with torch.no_grad():
        conv.weight.copy_(torch.cat([layer[0].weight for layer in layers]).view_as(conv.weight))
        norm.weight.copy_(torch.cat([layer[1].weight for layer in layers]))
        norm.bias.copy_(torch.cat([layer[1].bias for layer in layers]))


def their_ssa(layer: Any, ours: Any) -> Any:
    theirs = layer.SpikingSelfAttention(12, 3).double()
    put(*theirs.qkv_conv_bn, [ours.query, ours.key, ours.value])
    put(*theirs.proj_conv_bn, [ours.out])
    return lambda x: theirs(x.flatten(3)).view_as(x)


def their_qka(layer: Any, ours: Any) -> Any:
    theirs = (layer.TokenQKAttention if ours.along == "token" else layer.ChannelQKAttention)(12, 3).double()
    put(*theirs.qk_conv_bn, [ours.query, ours.key])
    put(*theirs.proj_conv_bn, [ours.out])
    return lambda x: theirs(x.flatten(3)).view_as(x)


def their_sdsa(layer: Any, ours: Any) -> Any:
    """There the keys and values make the mask of the queries; the roles have other names, and are the same."""
    theirs = layer.SpikeDrivenSelfAttention(12, 3).double()
    for name, own in (("k", ours.query), ("v", ours.key), ("q", ours.value), ("proj", ours.out)):
        put(theirs.get_submodule(f"{name}_conv"), theirs.get_submodule(f"{name}_bn"), [own])
    return lambda x: theirs(x) - x


JELLY: dict[str, tuple[Callable[[], Any], Callable[[Any, Any], Any]]] = {
    "SSA": (lambda: SpikingSelfAttention(12, 3, papers_neuron), their_ssa),
    "SDSA": (lambda: SpikeDrivenAttention(12, papers_neuron), their_sdsa),
    "Q-K, tokens": (lambda: QKAttention(12, 3, papers_neuron), their_qka),
    "Q-K, channels": (lambda: QKAttention(12, 3, papers_neuron, "channel"), their_qka),
}


@pytest.mark.parametrize("name", JELLY)
def test_attention_has_the_spikes_and_gradients_of_spikingjellys(name: str) -> None:
    layer = pytest.importorskip("spikingjelly.activation_based.layer")
    torch.manual_seed(4)
    make, convert = JELLY[name]
    ours = make().double()
    ours.attend = papers_neuron(1.0)  # half the threshold, a surrogate as wide as the others'
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1, 2)
            nn.init.uniform_(module.bias, 0, 1.5)
    theirs = convert(layer, ours)
    x = torch.randint(0, 3, (4, 2, 12, 3, 3)).double().requires_grad_()
    y, weight = BPTT()(ours, x).steps, torch.randn(4, 2, 12, 3, 3).double()
    assert y.any() and y.std() > 0
    their_y = theirs(x)
    torch.testing.assert_close(y, their_y)
    gradients = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (y, their_y)]
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


def pooled_first(network: nn.Module) -> None:
    """Pool before the neuron as SpikingJelly's own Spikformer does; in the paper's equation the spikes are pooled."""
    for part in network.modules():
        if isinstance(part, nn.Sequential):
            layers = list(part)
            for k, layer in enumerate(layers):
                if isinstance(layer, nn.MaxPool2d) and isinstance(layers[k - 1], LIF):
                    part[k - 1], part[k] = layer, layers[k - 1]


def test_the_whole_spikformer_has_the_spikes_and_gradients_of_spikingjellys_but_for_the_place_of_its_pooling() -> None:
    theirs_of = pytest.importorskip("spikingjelly.activation_based.model.spikformer")
    torch.manual_seed(6)
    theirs = theirs_of.Spikformer(
        T=4, in_channels=3, img_size_h=16, img_size_w=16, patch_size=4, num_classes=5, embed_dims=32, num_heads=4, depths=2
    ).double()
    ours = spikformer(5, width=4, activation=papers_neuron, depth=2, heads=4).double()
    pooled_first(ours)
    for module in ours.modules():
        if isinstance(module, SpikingSelfAttention):
            module.attend = papers_neuron(1.0)  # half the threshold, a surrogate as wide as the others'
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 1, 2)
            nn.init.uniform_(module.bias, 0, 1)
    convs, norms = ([m for m in ours.modules() if isinstance(m, kind)] for kind in (nn.Conv2d, nn.BatchNorm2d))
    layers = list(zip(convs, norms, strict=True))
    their_convs = [m for m in theirs.modules() if isinstance(m, nn.Conv1d | nn.Conv2d)]
    their_norms = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    rest = iter(layers)
    pairs = []
    for conv, norm in zip(their_convs, their_norms, strict=True):
        own = [next(rest) for _ in range(3 if len(conv.weight) == 3 * conv.weight.shape[1] else 1)]
        put(conv, norm, own)
        pairs.append((conv.weight, [layer[0].weight for layer in own]))
    (head,) = (m for m in ours.modules() if isinstance(m, nn.Linear))
    theirs.head.load_state_dict(head.state_dict())
    x = torch.randn(4, 2, 3, 16, 16).double().requires_grad_()
    y, weight = BPTT()(ours, x).steps, torch.randn(4, 2, 5).double()
    their_y = theirs(x)
    torch.testing.assert_close(y, their_y)
    gradients = torch.autograd.grad((y * weight).sum(), [x, *(w for _, own in pairs for w in own)])
    their_x, *their_gradients = torch.autograd.grad((their_y * weight).sum(), [x, *(w for w, _ in pairs)])
    torch.testing.assert_close(gradients[0], their_x)
    assert their_x.any()
    ours_left = iter(gradients[1:])
    for wanted, (_, own) in zip(their_gradients, pairs, strict=True):
        found = torch.cat([next(ours_left) for _ in own])
        torch.testing.assert_close(found.view_as(wanted), wanted)


# the networks ------------------------------------------------------------------------------------------------------------


@every_transformer
@pytest.mark.parametrize("patch", [4, 16])
def test_a_token_stands_for_a_patch(make: Any, patch: int) -> None:
    with torch.device("meta"):
        body = make(width=2, depth=3, patch=patch)
    shapes = stage_shapes(body, (3, 64, 48))
    assert shapes[-1] == (1, 16, 64 // patch, 48 // patch)
    if make is qkformer:
        assert [s[1:] for s in shapes] == [(4 * 2**k, 256 // patch // 2**k, 192 // patch // 2**k) for k in range(3)]
    else:
        assert set(shapes) == {shapes[-1]} and len(shapes) == 4


@pytest.mark.parametrize(
    ("depth", "blocks"), [(1, [1]), (2, [1, 1]), (4, [1, 1, 2]), (5, [1, 2, 2]), (8, [2, 3, 3]), (10, [3, 3, 4])]
)
def test_the_blocks_are_divided_among_at_most_three_stages(depth: int, blocks: list[int]) -> None:
    with torch.device("meta"):
        for make in (spikformer, spike_driven_transformer):
            assert [len(stage) for stage in list(make(width=1, depth=depth).stages.values())[1:]] == blocks  # type: ignore[arg-type]


@pytest.mark.parametrize(("depth", "blocks"), [(3, [1, 1, 1]), (4, [1, 1, 2]), (10, [1, 2, 7])])
def test_qkformer_has_the_papers_blocks_in_its_stages(depth: int, blocks: list[int]) -> None:
    with torch.device("meta"):
        body = qkformer(depth=depth, heads=12, width=6)
    kinds: list[list[Any]] = [
        [m for m in stage.modules() if isinstance(m, QKAttention | SpikingSelfAttention)] for stage in body.stages.values()
    ]
    assert [len(found) for found in kinds] == blocks
    assert [found[0].heads for found in kinds] == [3, 6, 12]
    assert [type(found[0]) for found in kinds] == [QKAttention, QKAttention, SpikingSelfAttention]


def test_the_spike_driven_transformer_adds_membranes_and_multiplies_spikes_only() -> None:
    network = spike_driven_transformer(width=2, activation=partial(LIF, threshold=0.3))
    inputs: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda m, args, out, name=name: inputs.update({name: args[0].steps}))
    BPTT()(network, torch.rand(3, 4, 3, 16, 16))
    first = next(iter(inputs))
    pooled = {"head.3"}  # the mean over the tokens
    assert all(set(x.unique().tolist()) <= {0.0, 1.0} for name, x in inputs.items() if name not in {first} | pooled)


@every_transformer
def test_bytes_saved_for_backward_do_not_depend_on_T(make: Any) -> None:
    network, image = make(width=1, depth=3), torch.rand(2, 3, 8, 8)
    for rules in ((RateBP(), (1, 2, 8)), (RateBP(chunk=1), (2, 8))):
        rule, times = rules
        saved = [saved_bytes(rule, network, image.expand(T, *image.shape)) for T in times]
        assert len(set(saved)) == 1, (rule, saved)
    bptt = [saved_bytes(BPTT(), network, image.expand(T, *image.shape)) for T in (2, 8)]
    assert bptt[1] > 3 * bptt[0]


@every_transformer
def test_chunks_have_the_values_of_one_pass_in_evaluation(make: Any) -> None:
    network = settled(make(width=1, depth=3, activation=partial(LIF, threshold=0.3)))
    x = torch.rand(5, 2, 3, 8, 8, dtype=torch.float64)
    whole = RateBP()(network, x).rate
    assert whole.std() > 0
    for chunk in (1, 2):
        torch.testing.assert_close(RateBP(chunk=chunk)(network, x).rate, whole)


def test_channel_attention_trains_and_is_checked_as_the_others() -> None:
    network = qkformer(width=1, depth=3, attention="channel")
    found = check(network, torch.randn(2, 3, 8, 8).expand(3, 2, 3, 8, 8))
    assert found.fine, found.faults
    assert not found.exact
    RateBP()(network, torch.rand(2, 4, 3, 8, 8)).rate.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_the_training_forward_of_attention_is_one_graph() -> None:
    torch.compiler.reset()
    attention, x = SpikingSelfAttention(4, 2, LIF), torch.rand(2, 2, 4, 3, 3)
    traced = torch.compile(RateBP(), fullgraph=True, backend="eager")(attention, x).rate
    torch.testing.assert_close(traced, RateBP()(attention, x).rate)


# what does not fit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: spikformer(width=2, heads=3), "heads is 3: give a divisor of 16"),
        (lambda: spikformer(width=2, heads=0), "heads is 0: give a divisor of 16"),
        (lambda: spikformer(depth=0), "depth is 0"),
        (lambda: spikformer(patch=3), "patch is 3: give the pixels of a token's side, one of 1, 2, 4, 8, 16"),
        (lambda: spike_driven_transformer(patch=32), "patch is 32"),
        (lambda: qkformer(patch=2), "patch is 2: give the pixels of a token's side, one of 4, 8, 16"),
        (lambda: qkformer(depth=2), "depth is 2: give at least 3"),
        (lambda: qkformer(width=2, heads=3), "heads is 3: give a divisor of 16"),
        (lambda: qkformer(attention="row"), 'attention is \'row\': give "token" or "channel"'),
        (lambda: Model("resnet18", depth=3), "model.depth is 3, which resnet18 does not have: leave it out"),
        (lambda: Model("sdt", heads=4), "model.heads is 4, which sdt does not have"),
        (lambda: Model("spikformer", depth=0), "model.depth is 0: give a number of blocks >= 1"),
        (lambda: Model("spikformer", 2, heads=3).check(10, (3, 32, 32), Neuron()), "heads is 3: give a divisor of 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@every_transformer
def test_what_nir_has_no_node_for_is_refused_in_a_sentence(make: Any) -> None:
    pytest.importorskip("nir")
    network = make(width=1, depth=3, activation=partial(LIF, v_reset=0.0)).eval()
    with pytest.raises(ValueError, match="can't be exported, since NIR has no node for it: "):
        to_nir(network, (3, 8, 8))


def test_another_network_takes_the_sizes_that_it_has() -> None:
    run = preset("cifar10-spikformer-rate").run
    assert with_kinds(run, {"--network": "sdt"}).model == Model("sdt", 48, depth=4)
    assert with_kinds(run, {"--network": "resnet18"}).model == Model("resnet18", 48)


@pytest.mark.parametrize("name", ["spikformer", "sdt", "qkformer"])
def test_the_presets_of_a_network_differ_in_the_method_only(name: str) -> None:
    for size, methods in (("", ("rate", "bptt")), ("-small", ("rate", "esd", "bptt"))):
        runs = [preset(f"cifar10-{name}{size}-{method}").run for method in methods]
        assert len({str((r.model, r.data, r.neuron, r.T, r.curriculum, r.epochs, r.batch, r.optim.lr)) for r in runs}) == 1
        assert runs[0].model.name == name and runs[0].rule == RateBP() and runs[-1].rule == BPTT()
