"""Recordings of layers: what the neurons got, held and fired, by any rule, whole or in windows; and their pictures."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from spikerate import BPTT, LIF, OTTT, SLTT, FiringRates, RateBP, record, spiking
from spikerate.measure.recording import Activity
from spikerate.neuron import Rectifier
from spikerate.report.activity import membranes, raster
from spikerate.report.charts import HEIGHT
from support.networks import golden_branched, gradients, small_network

RULES: list[Any] = [BPTT(), BPTT(checkpoint=True), BPTT(chunk=2), SLTT(), OTTT(), RateBP(), RateBP(chunk=1)]


def some(T: int = 5) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(2)
    network = small_network(lambda: LIF(0.5, threshold=0.2, v_reset=-0.1)).double().eval()
    return network, 2 * torch.rand(T, 2, 2, 6, 6, dtype=torch.float64)


def by_the_equation(currents: Tensor) -> tuple[Tensor, Tensor]:
    """Membranes after each step, and spikes, of `LIF(0.5, threshold=0.2, v_reset=-0.1)`."""
    u, held, spikes = torch.zeros_like(currents[0]), [], []
    for current in currents:
        v = 0.5 * u + current
        s = (v >= 0.2).double()
        u = torch.where(s == 1, -0.1, v)
        held.append(u)
        spikes.append(s)
    return torch.stack(held), torch.stack(spikes)


def assert_is_all(recorded: Any, network: nn.Sequential, x: Tensor) -> None:
    assert list(recorded) == ["2", "5"] and len(recorded) == 2
    for name, activity in recorded.items():
        currents = BPTT()(network[: int(name)], x).steps
        u, spikes = by_the_equation(currents)
        for found, wanted in zip(
            (activity.currents, activity.membranes, activity.spikes), (currents, u, spikes), strict=True
        ):
            torch.testing.assert_close(found, wanted.detach())
        assert 0 < float(spikes.mean()) < 1


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("static", [True, False])
def test_what_is_recorded_is_the_equation_and_changes_nothing(rule: Any, static: bool) -> None:
    network, x = some()
    x = x[:1].expand(x.shape) if static else x
    with record(network) as recorded:
        out = rule(recorded, x)
    plain = rule(network, x)
    assert_is_all(recorded, network, x)
    assert torch.equal(out.steps, plain.steps) and type(out) is type(plain)
    found, wanted = (gradients(network, y.rate.square().sum()) for y in (out, plain))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("rule", [BPTT(), BPTT(chunk=1), SLTT(), RateBP(chunk=2)], ids=str)
def test_windows_of_a_stream_are_recorded_as_one(rule: Any) -> None:
    network, x = some(7)
    state = None
    with record(network) as recorded:
        for part in x.split(3):
            _, state = rule.continued(recorded, part, state)
    assert_is_all(recorded, network, x)
    assert state is not None and all(torch.equal(state[name], recorded[name].membranes[-1]) for name in recorded)
    _, rates = FiringRates(BPTT())(recorded.network, x)
    assert torch.allclose(rates["5"], recorded["5"].spikes.mean(0))
    with record(network) as begun:
        rule.continued(begun, x[:3], rule.continued(network, x[3:])[1])
    u, _ = by_the_equation(BPTT()(network[:2], torch.cat([x[3:], x[:3]])).steps.detach())
    torch.testing.assert_close(begun["2"].membranes, u[4:])


def test_layers_are_chosen_by_path_and_second_calls_have_names() -> None:
    network, x = golden_branched(), torch.rand(2, 2, 3, 8, 8)
    with record(network, "body.stages.layer1", "body.stem.2") as recorded:
        out = RateBP()(recorded, x)
    assert list(recorded) == ["body.stem.2", "body.stages.layer1.lif1", "body.stages.layer1.lif2"] and len(out.exits) == 2
    shared = LIF()
    twice = nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 4), shared)
    with record(twice, "1") as recorded:
        BPTT(chunk=1)(recorded, torch.rand(3, 2, 3))
    assert {name: list(a.membranes.shape) for name, a in recorded.items()} == {"1": [3, 2, 3], "1, call 2": [3, 2, 4]}
    relu = spiking(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), Rectifier)
    with record(relu) as recorded:
        BPTT()(recorded, torch.rand(3, 2, 3))
    assert recorded["1"].membranes is None and torch.equal(recorded["1"].spikes, recorded["1"].currents.relu())


def test_what_can_not_be_recorded_is_said() -> None:
    network = golden_branched()
    words = (
        r"^record got 'body.stages.layer1.lif', where there is no neuron of the network: the nearest are \['body.stages.la"
    )
    with pytest.raises(ValueError, match=words), record(network, "body.stages.layer1.lif"):
        pass
    with pytest.raises(ValueError, match="the network has no module that is one"), record(nn.Linear(3, 3), "1"):
        pass
    with record(network) as recorded:
        BPTT()(recorded, torch.rand(2, 2, 3, 8, 8))
        with pytest.raises(
            ValueError, match=r"'body.stem.2' was recorded with spikes \[2, 8, 8, 8\] .*by a `record` of their"
        ):
            BPTT()(recorded, torch.rand(2, 3, 3, 8, 8))
    with pytest.raises(RuntimeError, match="a recording ended with its `with` block"):
        BPTT()(recorded, torch.rand(2, 2, 3, 8, 8))
    with pytest.raises(KeyError):
        recorded["none"]


# pictures ---------------------------------------------------------------------------------------------------------------


def pieces(svg: str, tag: str) -> list[dict[str, str]]:
    return [piece.attrib for piece in ElementTree.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{tag}")]


def test_a_raster_has_a_dash_for_each_spike() -> None:
    torch.manual_seed(3)
    spikes = (torch.rand(6, 2, 3, 4) < 0.3).float()
    recorded = {
        name: Activity(train, train, None) for name, train in {"a<b": spikes, "wide": spikes.repeat(1, 1, 20, 1)}.items()
    }
    svg = raster(recorded, sample=1, neurons=12)
    first, second = (path["d"] for path in pieces(svg, "path"))
    dashes = [(float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h", first)]
    width = min(b - a for a in {x for x, _ in dashes} for b in {x for x, _ in dashes} if b > a)
    found = {(round((x - 8) / width), round((y - min(y for _, y in dashes)) / 4)) for x, y in dashes}
    fired = spikes[:, 1].flatten(1).nonzero().tolist()
    lowest = min(unit for _, unit in fired)
    assert found == {(t, unit - lowest) for t, unit in fired}
    assert 0 < len(re.findall("M", second)) <= 6 * 12
    text = "".join(ElementTree.fromstring(svg).itertext())
    assert "a<b" in text and f"{float(spikes[:, 1].mean()):.3f} spikes a step" in text


def test_membranes_are_drawn_where_they_were() -> None:
    network, x = some(9)
    with record(network, "5") as recorded:
        BPTT()(recorded, x)
    svg = membranes(recorded, "5", neurons=(0, 7), sample=1)
    lines = [path["d"] for path in pieces(svg, "path") if "grid" not in path.get("class", "")]
    assert len(lines) == 2
    u = recorded["5"].membranes[:, 1].flatten(1)[:, [0, 7]]
    y = torch.tensor([[float(point.split()[1]) for point in line[1:].split("L")] for line in lines]).double().T
    assert y.shape == (9, 2) and float(y.max()) < HEIGHT
    slope = (y[0, 0] - y[1, 0]) / (u[0, 0] - u[1, 0])
    torch.testing.assert_close(y - y[0, 0], slope * (u - u[0, 0]), atol=0.5, rtol=0.02)
    assert len(pieces(svg, "circle")) == int(recorded["5"].spikes[:, 1].flatten(1)[:, [0, 7]].sum())


def test_pictures_of_what_is_not_there() -> None:
    network, x = some()
    with record(network) as recorded:
        with pytest.raises(ValueError, match="nothing was recorded"):
            raster(recorded)
        BPTT()(recorded, x)
    with pytest.raises(ValueError, match="sample is 2: give an index from 0 to 1"):
        raster(recorded, sample=2)
    with pytest.raises(ValueError, match=r"layer is '3', which was not recorded: give one of \['2', '5'\]"):
        membranes(recorded, "3")
    with pytest.raises(ValueError, match=r"neurons is \(45,\): give one to six indices from 0 to 44"):
        membranes(recorded, "5", neurons=(45,))
    train = torch.zeros(2, 1, 3)
    with pytest.raises(ValueError, match="the neurons of 'a' have no membrane: give a layer"):
        membranes({"a": Activity(train, train, None)}, "a")
