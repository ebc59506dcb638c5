"""Activations that are called as functions: each place in the code becomes a neuron, as if it were a module."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.functional as functions
from torch import Tensor, nn
from torch.nn.functional import relu, silu
from torch.testing import assert_close

from spikerate import BPTT, LIF, SLTT, RateBP, StepNeuron, check, spiking
from spikerate.exchange.nir import to_nir
from spikerate.models import fold_batch_norm
from spikerate.models.functional import PLACE, call_sites
from support.networks import gradients

RULES = [RateBP(), RateBP(chunk=1), BPTT(), BPTT(chunk=2), BPTT(checkpoint=True), SLTT()]


class BasicConv(nn.Module):
    """torchvision's of GoogLeNet: a convolution, batch norm and `F.relu`."""

    def __init__(self, i: int, o: int, **how: Any) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(i, o, bias=False, **how), nn.BatchNorm2d(o, eps=0.001)

    def forward(self, x: Any) -> Any:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.branch1 = BasicConv(i, o, kernel_size=1)
        self.branch2 = nn.Sequential(BasicConv(i, o, kernel_size=1), BasicConv(o, o, kernel_size=3, padding=1))
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(kernel_size=3, stride=1, padding=1, ceil_mode=True), BasicConv(i, o, kernel_size=1)
        )

    def _forward(self, x: Any) -> list[Any]:
        return [self.branch1(x), self.branch2(x), self.branch4(x)]

    def forward(self, x: Any) -> Any:
        return torch.cat(self._forward(x), 1)


class InceptionAux(nn.Module):
    def __init__(self, i: int, k: int) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = BasicConv(i, 4, kernel_size=1), nn.Linear(16, 6), nn.Linear(6, k)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Any) -> Any:
        x = torch.flatten(self.conv(F.adaptive_avg_pool2d(x, (2, 2))), 1)
        return self.fc2(self.dropout(F.relu(self.fc1(x), inplace=True)))


class GoogLeNet(nn.Module):
    """Its operations in small, with a head that there is in training only."""

    def __init__(self, k: int = 3) -> None:
        super().__init__()
        self.conv1, self.maxpool1 = BasicConv(2, 4, kernel_size=3, padding=1), nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a, self.inception3b = Inception(4, 3), Inception(9, 4)
        self.aux1 = InceptionAux(9, k)
        self.avgpool, self.dropout, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Dropout(0.0), nn.Linear(12, k)

    def forward(self, x: Any) -> Any:
        x = self.inception3a(self.maxpool1(self.conv1(x)))
        aux = self.aux1(x) if self.training else None
        x = self.fc(self.dropout(torch.flatten(self.avgpool(self.inception3b(x)), 1)))
        return x if aux is None else x + 0.3 * aux


class DenseLayer(nn.Module):
    """torchvision's of DenseNet, which takes a list of features, or one."""

    def __init__(self, i: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(i), nn.ReLU(inplace=True), nn.Conv2d(i, 4, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, growth, 3, padding=1, bias=False)
        self.drop_rate = 0.0

    def forward(self, features: Any) -> Any:
        earlier = [features] if isinstance(features, Tensor) else features
        x = self.conv1(self.relu1(self.norm1(torch.cat(earlier, 1))))
        x = self.conv2(self.relu2(self.norm2(x)))
        return F.dropout(x, p=self.drop_rate, training=self.training) if self.drop_rate > 0 else x


class DenseBlock(nn.ModuleDict):
    def __init__(self, layers: int, i: int, growth: int) -> None:
        super().__init__({f"denselayer{k + 1}": DenseLayer(i + k * growth, growth) for k in range(layers)})

    def forward(self, x: Any) -> Any:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self, k: int = 3) -> None:
        super().__init__()
        transition = nn.Sequential(
            nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1, bias=False), nn.AvgPool2d(2, 2)
        )
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), DenseBlock(2, 4, 2), transition, DenseBlock(2, 4, 3), nn.BatchNorm2d(10)
        )
        self.classifier = nn.Linear(10, k)

    def forward(self, x: Any) -> Any:
        out = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(out, (1, 1)), 1))


def decorated(f: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(f)
    def inner(*args: Any) -> Any:
        return f(*args)

    return inner


class Ways(nn.Module):
    """Each way to call an activation as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.relu, self.act = nn.ModuleList(nn.Linear(5, 5) for _ in range(8)), nn.ReLU(), functions.elu
        self.last = partial(F.relu, inplace=True)

    @decorated
    def middle(self, x: Any) -> Any:
        return self.fc[3](x).relu()

    @staticmethod
    def rectified(x: Any) -> Any:
        return torch.relu(x)

    def forward(self, x: Any) -> Any:
        x = self.rectified(self.fc[0](x))
        x = relu(self.fc[1](x))
        x = self.middle(functions.gelu(self.fc[2](x)))
        x = self.fc[4](x).relu_()
        x = silu(self.fc[5](x)) + self.relu(x)
        return self.last(self.fc[7](self.act(self.fc[6](x))))


class InModules(nn.Module):
    """What the same network is with a neuron at each of its places."""

    def __init__(self, net: Any, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc, self.n = copy.deepcopy(net.fc), nn.ModuleList(neuron() for _ in range(9))

    def forward(self, x: Any) -> Any:
        for k in range(5):
            x = self.n[k](self.fc[k](x))
        x = self.n[5](self.fc[5](x)) + self.n[6](x)
        return self.n[8](self.fc[7](self.n[7](self.fc[6](x))))


def images(T: int, B: int = 3, side: int = 8, dtype: Any = None) -> Tensor:
    return torch.randn(T, B, 2, side, side, dtype=dtype)


@pytest.mark.parametrize("make", [GoogLeNet, DenseNet])
def test_rate_based_gradients_are_bptts_at_one_step(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    ann = make()
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    snn = spiking(ann, partial(LIF, threshold=0.5)).double()
    x, labels = images(1, side=20, dtype=torch.float64), torch.arange(3)
    rate, bptt = (gradients(snn, F.cross_entropy(rule(snn, x).rate, labels)) for rule in (RateBP(), BPTT()))
    for name in rate:
        assert_close(rate[name], bptt[name], rtol=1e-9, atol=1e-12)
    # Behind two max pools all is 1, which batch norm makes 0; and neurons without batch norm are silent at first.
    assert {name for name, value in rate.items() if not value.any()} <= {
        "inception3a.branch4.1.bn.weight",
        "aux1.fc2.weight",
    }
    assert list(snn.state_dict()) == list(before)
    assert all(torch.equal(before[name], value) for name, value in ann.state_dict().items())
    assert type(ann) is make and isinstance(snn, make) and call_sites(snn.features if make is DenseNet else ann) == 0
    assert ann(x[0].float()).shape == (3, 3), "the original is an ordinary network"
    assert check(snn.float(), images(3)).fine


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_way_to_call_an_activation_fires_as_a_module_of_its_own(rule: Any) -> None:
    torch.manual_seed(1)
    net, neuron = Ways(), partial(LIF, threshold=0.1, decay=0.7)
    assert call_sites(net) == 8
    snn, same = spiking(net, neuron), InModules(net, neuron)
    assert len(snn.get_submodule(PLACE)) == 8  # type: ignore[arg-type]
    x = torch.randn(4, 6, 5)
    ours, theirs = rule(snn, x), rule(same, x)
    assert torch.equal(ours.steps, theirs.steps) and ours.steps.sum() > 0
    grads = [torch.autograd.grad(y.rate.square().sum(), list(f.fc.parameters())) for y, f in ((ours, snn), (theirs, same))]
    for one, other in zip(*grads, strict=True):
        assert_close(one, other)


class Learned(StepNeuron):
    """A neuron with state of its own, to see which is called where; its own activation stays what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.rand(()))

    def step(self, current: Tensor, state: Any) -> tuple[Tensor, Any]:
        return F.relu(current) * self.level, ()


def test_each_place_has_a_neuron_whose_state_is_found_copied_and_stored() -> None:
    torch.manual_seed(2)
    snn = spiking(Ways(), Learned)
    x = torch.randn(2, 3, 5)
    out = BPTT()(snn, x).steps
    levels = [module.level for module in snn.modules() if isinstance(module, Learned)]
    assert len(levels) == 9 and len({float(level) for level in levels}) == 9
    assert {f"{PLACE}.{k}.level" for k in range(8)} <= snn.state_dict().keys()
    stream = io.BytesIO()
    torch.save(snn, stream)
    stream.seek(0)
    for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn)), torch.load(stream, weights_only=False)):
        assert torch.equal(BPTT()(other, x).steps, out)
        own = dict(other.named_buffers())
        assert all(own[name] is not value and torch.equal(own[name], value) for name, value in snn.named_buffers())
    again = spiking(Ways(), Learned)
    again.load_state_dict(snn.state_dict())
    assert torch.equal(BPTT()(again, x).steps, out)
    with torch.no_grad():
        snn.get_submodule(f"{PLACE}.7").level.zero_()  # type: ignore[union-attr,operator]
    assert not BPTT()(snn, x).steps.any(), "the last place is the last neuron's"


def test_it_compiles_as_one_graph() -> None:
    torch.manual_seed(3)
    snn = spiking(BasicConv(2, 3, kernel_size=3))
    compiled = torch.compile(lambda x: RateBP()(snn, x).rate, fullgraph=True, backend="aot_eager")
    x = images(2)
    assert torch.equal(compiled(x), RateBP()(snn, x).rate)


def test_a_loop_calls_the_last_neuron_again_each_time_as_a_layer_of_its_own() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            for _ in range(3):
                x = F.relu(self.fc(x))
            return x

    torch.manual_seed(4)
    snn: Any = spiking(Loop(), partial(LIF, threshold=0.2))
    x = torch.randn(5, 2, 4)
    layers = [snn.fc, LIF(threshold=0.2)] * 3
    assert torch.equal(RateBP(chunk=2)(snn, x).steps, RateBP(chunk=2)(nn.Sequential(*layers), x).steps)


def test_a_tensor_instead_of_a_signal_is_refused_and_what_tensors_do_inside_stays() -> None:
    class Squeeze(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.side = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Any) -> Any:
            ordinary = F.relu(self.side(x.rate))
            return F.relu(self.fc(x)), ordinary

    snn = spiking(Squeeze())
    x = 9 * torch.randn(2, 3, 3)
    spikes, ordinary = BPTT()(snn, x)
    assert set(spikes.steps.unique().tolist()) <= {0.0, 1.0} and ordinary.max() > 1
    with pytest.raises(TypeError, match="LIF got a plain tensor, which has no time axis: call the network by a rule"):
        spiking(BasicConv(2, 3, kernel_size=3))(torch.rand(1, 2, 5, 5))


def helper(x: Any) -> Any:
    return F.relu(x)


def test_what_a_function_outside_of_the_class_calls_is_refused_by_name() -> None:
    class Helped(nn.Module):
        def forward(self, x: Any) -> Any:
            return helper(x)

    with pytest.raises(TypeError, match="relu has no rule for a spiking signal"):
        BPTT()(spiking(nn.Sequential(nn.ReLU(), Helped())), torch.rand(2, 2, 3))


def test_spikingjelly_has_the_same_spikes() -> None:
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    from spikerate.exchange.spikingjelly import from_spikingjelly, to_spikingjelly

    torch.manual_seed(6)
    snn = spiking(GoogLeNet()).double().eval()
    x = images(3, dtype=torch.float64)
    theirs = to_spikingjelly(snn)
    functional.reset_net(theirs)
    assert_close(functional.multi_step_forward(x, theirs), BPTT()(snn, x).steps)
    assert_close(BPTT()(from_spikingjelly(theirs), x).steps, BPTT()(snn, x).steps)


def test_other_forms_of_a_network_have_the_neurons() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(BasicConv(2, 3, kernel_size=3), nn.Flatten(), nn.Linear(108, 3))
    snn = spiking(net, partial(LIF, v_reset=0.0)).eval()
    x = images(3)
    assert_close(BPTT()(fold_batch_norm(snn), x).steps, BPTT()(snn, x).steps)
    kinds = {name: type(node).__name__ for name, node in to_nir(snn, (2, 8, 8)).nodes.items()}
    assert sum("LIF" in kind for kind in kinds.values()) == 1, kinds
