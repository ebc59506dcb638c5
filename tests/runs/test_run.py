"""A run: its configuration, its folder, and the loop that trains it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from spikerate import BPTT, LIF, OTTT, TET, RateBP, SelfDistillation, Staged
from spikerate.data import Augment, Data, DataSet, load, plain_batches
from spikerate.losses import Terms
from spikerate.measure.evaluate import Accuracy, answers, over_time
from spikerate.measure.health import firing
from spikerate.measure.meter import Ledger, Meter
from spikerate.models import resnet18
from spikerate.runs.config import Model, Neuron, Run
from spikerate.runs.optim import SGD
from spikerate.runs.presets import preset
from spikerate.runs.record import RunFolder
from spikerate.runs.state import State
from spikerate.runs.train import Trainer, build_network, pick_device
from spikerate.surrogate import Dspike
from spikerate.system import environment
from spikerate.system.codec import decode, encode
from support.runs import Silent

TINY = Run(model=Model(width=2), epochs=2, batch=200, T=2, loss=SelfDistillation(), optim=SGD(loss_scale="1/T"))


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load(Data("digits"), 1)


def run_in(path: Path, run: Run, data: DataSet) -> tuple[State, Silent, RunFolder]:
    watch, folder = Silent(), RunFolder.create(path, run, {})
    return Trainer(run, data, folder, watch).train(), watch, folder


# configuration ----------------------------------------------------------------------------------------------------------


@given(
    chunk=st.none() | st.integers(1, 9),
    teacher=st.sampled_from(["reliable", "all", None]),
    v_reset=st.none() | st.floats(-2, 0.5),
    path=st.none() | st.just(Path("a/b")),
)
def test_a_configuration_comes_back_from_json(chunk: Any, teacher: Any, v_reset: Any, path: Any) -> None:
    run = Run(
        data=Data("events", path, sensor=(48, 64), subset=7),
        rule=RateBP(chunk),
        loss=SelfDistillation(teacher=teacher),
        neuron=Neuron(v_reset=v_reset, surrogate=Dspike(2.0)),
    )
    assert decode(Run, json.loads(json.dumps(encode(run)))) == run


def changed(**entries: Any) -> dict[str, Any]:
    record = encode(Run())
    for key, value in entries.items():
        inner, *path = record, *key.split("__")
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
    return record


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (changed(T=0), "T is 0"),
        (changed(T="4"), "run.T is '4': give a value of type int"),
        (changed(T=True), "run.T is True"),
        (changed(optim__lr=float("inf")), "optim.lr is inf"),
        (changed(epoch=3), "unknown field 'epoch': did you mean epochs"),
        (changed(zzz=3), "unknown field 'zzz'$"),
        (changed(rule__type="Hebb"), "run.rule is of type 'Hebb': give one of BPTT, SLTT"),
        (changed(rule=3), "run.rule is '3'"),
        (changed(data__name="minst"), "run.data.name is 'minst': give one of 'digits', 'cifar10'"),
        (changed(data__sensor=[1]), "run.data.sensor is"),
        (changed(data__sensor=[1, "2"]), "run.data.sensor is '2'"),
        (changed(data__path=3), "run.data.path is 3"),
        (changed(model="resnet18"), "run.model is 'resnet18': give the fields of a Model"),
        ({"type": "Run"}, "has no field 'data'"),
        ([], "give the fields of a Run"),
        (None, "give the fields of a Run"),
    ],
)
def test_a_broken_configuration_is_a_sentence(record: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode(Run, record)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Run(T=0), "T is 0"),
        (lambda: Run(epochs=0), "epochs is 0"),
        (lambda: Run(batch=0), "batch is 0"),
        (lambda: Run(batch=1), "batch is 1"),
        (lambda: Run(seed=-1), "seed is -1"),
        (lambda: Run(T=2.5), "T is 2.5"),  # type: ignore[arg-type]
        (lambda: Run(precision="fp16"), "precision is 'fp16'"),  # type: ignore[arg-type]
        (lambda: SGD(loss_scale="1/t"), "optim.loss_scale is '1/t'"),  # type: ignore[arg-type]
        (lambda: Model("resnet21"), "model.name is 'resnet21'"),  # type: ignore[arg-type]
        (lambda: Run(Data("minst")), "data.name is 'minst'"),  # type: ignore[arg-type]
        (lambda: Model("vgg11", stem="7x7"), "which vgg11 does not have"),
        (lambda: Model(stem="5x5"), "model.stem is '5x5'"),  # type: ignore[arg-type]
        (
            lambda: Model("vggsnn").build(10, (2, 34, 48), Neuron()),
            "the samples are 34 x 48",
        ),
        (lambda: Run(loss=TET()), "TET needs a gradient at every step"),
        (lambda: Run(rule=OTTT(decay=0.5)), "rule.decay is 0.5, and the neurons' 0.2"),
        (lambda: pick_device("meta"), "device is 'meta'"),
        (lambda: Run(accumulate=0), "accumulate is 0"),
        (lambda: Run(batch=8, accumulate=5), "at least two images in each part"),
        (lambda: Run(sync_bn=True, compile=True), "sync_bn can't be compiled"),
        (lambda: Model(width=0), "model.width is 0"),
        (lambda: Neuron(decay=0), "LIF.decay is 0"),
        (lambda: SGD(lr=0), "optim.lr is 0"),
        (lambda: SGD(momentum=1), "optim.momentum is 1"),
        (lambda: SGD(weight_decay=-1), "optim.weight_decay is -1"),
        (lambda: Run(Data("digits", validation=3)), "built in"),
        (lambda: Data("cifar10", validation=-1), "data.validation is -1"),
        (lambda: Run(Data("digits", augment=Augment(autoaugment="cifar10"))), "colour images"),
        (lambda: preset("cifar10-edd"), "did you mean cifar10-esd"),
        (lambda: preset("?"), "spikerate list"),
        (lambda: pick_device("gpu"), "device is 'gpu'"),
    ],
)
def test_values_out_of_range(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# optimiser --------------------------------------------------------------------------------------------------------------


def test_no_weight_decay_on_vectors_and_no_nesterov() -> None:
    network = resnet18(width=2)
    (optimizer,) = SGD(weight_decay=0.01).build(network)
    decay = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert all(decay[p] == (0.01 if p.dim() > 1 else 0) for p in network.parameters())
    assert len(decay) == len(list(network.parameters()))
    assert all(not g["nesterov"] and g["momentum"] == 0.9 for g in optimizer.param_groups)


def test_cosine_and_loss_scale() -> None:
    optim = SGD(lr=0.2)
    assert [optim.lr_at(k, 10) for k in (0, 5, 10)] == pytest.approx([0.2, 0.1, 0.0])
    assert (optim.scale(4), SGD(loss_scale="1/T").scale(4)) == (1, 0.25)


def test_the_loss_scale_acts_on_the_gradient_and_not_on_the_loss(digits: DataSet, tmp_path: Path) -> None:
    """With a learning rate T times as large, and nothing else that sees the gradient, the run is the same."""
    base = replace(TINY, epochs=1)
    runs = [
        replace(base, optim=SGD(lr=0.1, weight_decay=0, loss_scale="1")),
        replace(base, optim=SGD(lr=0.2, weight_decay=0, loss_scale="1/T")),
    ]
    losses = [run_in(tmp_path / str(k), run, digits)[0].rows[0]["loss"] for k, run in enumerate(runs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# training ---------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_record(digits: DataSet, tmp_path: Path) -> None:
    trained, watch, folder = run_in(tmp_path / "run", TINY, digits)
    assert watch.rows == trained.rows == folder.metrics()
    assert watch.steps == list(range(1, 13))
    row = trained.rows[-1]
    names = {"epoch", "lr", "loss", "ce", "kl", "reliable", "accuracy", "gradient_norm", "validation", "firing_rate"}
    assert set(row) == names | {"firing_rates", "seconds", "train_seconds", "compile_seconds"} | {
        f"accuracy/exit{k}" for k in (1, 2, 3)
    }
    assert row["firing_rates"].keys() == {name for name, m in trained.network.named_modules() if isinstance(m, LIF)}
    x, _ = next(plain_batches(digits, digits.validation[slice(128)], 128, torch.device("cpu")))
    ledger = firing(trained.network, over_time(x, TINY.T))
    assert (row["firing_rate"], row["firing_rates"]) == (ledger.mean_rate(), ledger.rates(trained.network))
    assert sorted(p.name for p in folder.path.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        "metrics.jsonl",
        "run.json",
    ]
    assert folder.config() == TINY
    again = build_network(TINY, 10, (1, 8, 8), torch.device("cpu"))
    folder.load_weights("last", again)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), trained.network.state_dict().values(), strict=True)
    )
    folder.load_weights("best", again)
    assert answers(again, digits, digits.validation, TINY.T).at_step[-1].value == trained.best["validation"]


@pytest.mark.parametrize("rule", [RateBP(chunk=1), BPTT()], ids=str)
def test_the_same_seed_gives_the_same_run(rule: Any, digits: DataSet, tmp_path: Path) -> None:
    def rows(name: str, seed: int) -> list[dict[str, Any]]:
        run = replace(TINY, rule=rule, seed=seed, data=Data(augment=Augment(crop=1)))
        kept = run_in(tmp_path / name, run, digits)[0].rows
        return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in kept]

    assert rows("a", 0) == rows("b", 0) != rows("c", 1)


def test_a_run_learns(digits: DataSet, tmp_path: Path) -> None:
    run = replace(TINY, model=Model(width=8), epochs=4, batch=32, optim=SGD())
    trained, _, _ = run_in(tmp_path / "run", run, digits)
    assert trained.best["validation"] > 0.6
    assert trained.rows[-1]["loss"] < 0.5 * trained.rows[0]["loss"]


def test_best_is_the_last_of_the_highest_or_the_last() -> None:
    network = nn.Linear(1, 1)

    def best(*rows: dict[str, Any]) -> int:
        state = State(network, SGD().build(network), rows=[{"epoch": k + 1} | row for k, row in enumerate(rows)])
        return int(state.best["epoch"])

    assert best({"validation": 0.1}, {"validation": 0.7}, {"validation": 0.7}, {"validation": 0.3}) == 3
    assert best({}, {}) == 2


def test_the_test_set_is_not_touched(digits: DataSet, tmp_path: Path) -> None:
    class Untouchable:
        labels = digits.test.labels

        def to(self, device: torch.device) -> Any:
            return self

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"training looked at the test set: {name}")

    run_in(tmp_path / "run", replace(TINY, epochs=1), replace(digits, test=Untouchable()))  # type: ignore[arg-type]


def test_bf16_trains(digits: DataSet, tmp_path: Path) -> None:
    trained, _, _ = run_in(tmp_path / "run", replace(TINY, precision="bf16", epochs=1), digits)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trained.network.parameters())


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device: reading a value, and what has a size that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        self.n += func in (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", [RateBP(), RateBP(chunk=1), BPTT(), OTTT()], ids=str)
def test_no_step_waits_for_the_device(rule: Any, digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter, counted = Waits(), []
    step = Trainer._step

    def watched(*args: Any) -> Terms:
        before = counter.n
        with counter:
            terms = step(*args)
        counted.append(counter.n - before)
        return terms

    monkeypatch.setattr(Trainer, "_step", watched)
    run_in(tmp_path / "run", replace(TINY, rule=rule, epochs=1), digits)
    assert counted == [0] * (len(digits.train) // TINY.batch)
    with counter:
        float(torch.zeros(1))
    assert counter.n == 1


class RefusedOnGpu(TorchDispatchMode):
    """Refuses in a deterministic run what PyTorch refuses there on a GPU (`torch.use_deterministic_algorithms`)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        refused = func in (aten.histc.default, aten._adaptive_avg_pool2d_backward.default, aten.kthvalue.default)
        refused |= func is aten.cumsum.default and args[0].is_floating_point()
        if refused and torch.are_deterministic_algorithms_enabled():
            raise RuntimeError(f"{func} does not have a deterministic implementation")
        return func(*args, **(kwargs or {}))


def test_a_deterministic_run_has_no_operation_that_a_gpu_refuses(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with RefusedOnGpu():
        run_in(tmp_path / "run", replace(TINY, deterministic=True, epochs=1), digits)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            equalized = [Augment(autoaugment="cifar10")(torch.rand(16, 3, 8, 8), seed) for seed in range(8)]
            with pytest.raises(RuntimeError, match="cumsum"):
                torch.rand(3).cumsum(0)
            assert torch.is_deterministic_algorithms_warn_only_enabled()
        finally:
            torch.use_deterministic_algorithms(False)
    assert all(x.isfinite().all() for x in equalized)


def test_a_gpu_without_a_c_compiler_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_version", lambda package: "3.6")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert environment.compiler_problem(torch.device("cuda")) == "there is no C compiler (install gcc or clang)"


def test_without_a_compiler_there_is_a_line_and_the_eager_run(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    _, watch, _ = run_in(tmp_path / "run", replace(TINY, compile=True, epochs=1), digits)
    assert watch.lines[0].startswith("not compiled, since there is no C++ compiler (install g++ or clang)")


def small_staged(in_channels: int, num_classes: int) -> Staged:
    """Small, so that it compiles in seconds."""
    stem = nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), LIF())
    return Staged(stem, {"a": nn.AvgPool2d(2), "b": nn.Identity()}, nn.Sequential(nn.Flatten(), nn.Linear(36, num_classes)))


def test_a_compiled_run_is_announced_and_learns_the_same(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment.compiler_problem(torch.device("cpu")):
        pytest.skip("no compiler here")
    torch.compiler.reset()
    monkeypatch.setattr(Run, "build", lambda self, num_classes, in_shape: small_staged(in_shape[0], num_classes))
    run = replace(TINY, epochs=1)
    _, watch, folder = run_in(tmp_path / "compiled", replace(run, compile=True), digits)
    assert watch.lines[0].startswith("compiling the network") and watch.lines[1].startswith("compiled: the first step took")
    plain = run_in(tmp_path / "plain", run, digits)[0].rows[0]
    assert folder.metrics()[0]["loss"] == pytest.approx(plain["loss"], rel=0.05)


@pytest.mark.parametrize(("width", "last"), [(16, True), (8, False)])
def test_channels_last_where_it_is_safe(width: int, last: bool) -> None:
    """oneDNN's backward pass of strided 1x1 convolutions is wrong below 16 channels."""
    network = build_network(Run(model=Model(width=width)), 10, (3, 32, 32), torch.device("cpu"))
    kernel = network.get_submodule("stages.stage2.0.conv2").weight
    assert kernel.is_contiguous(memory_format=torch.channels_last) == last


# evaluation -------------------------------------------------------------------------------------------------------------


def test_accuracy_counts_every_image_once_and_leaves_the_mode(digits: DataSet) -> None:
    network = resnet18(in_channels=1, width=2)
    counts = {tuple(answers(network, digits, digits.test, 2, batch=batch).at_step) for batch in (7, 100, 1000)}
    assert len(counts) == 1
    assert [a.n for a in counts.pop()] == [360, 360]
    assert network.training


def test_accuracy_after_t_steps_is_that_of_a_run_of_t_steps(digits: DataSet) -> None:
    network = resnet18(in_channels=1, width=4, activation=lambda: LIF(threshold=0.1))
    curve = answers(network, digits, digits.test, 5).at_step
    assert len({a.right for a in curve}) > 1
    for t in (1, 3):
        assert answers(network, digits, digits.test, t).at_step == curve[:t]


def test_frames_go_step_by_step_and_images_to_every_step() -> None:
    images, frames = torch.rand(3, 2, 4, 4), torch.rand(3, 5, 2, 4, 4)
    assert torch.equal(over_time(images, 2), images.expand(2, 3, 2, 4, 4))
    assert torch.equal(over_time(frames, 5)[1], frames[:, 1])
    assert over_time(frames, 2).shape == (2, 3, 2, 4, 4)


def test_wilson_interval() -> None:
    low, high = Accuracy(9, 10).interval()
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)  # Wilson's interval, textbook value
    assert Accuracy(0, 10).interval()[0] == pytest.approx(0, abs=1e-12)
    assert Accuracy(10, 10).interval()[1] == pytest.approx(1)


def test_meter_sees_what_fires_and_changes_nothing(digits: DataSet) -> None:
    network, ledger = resnet18(in_channels=1, width=2, activation=lambda: LIF(threshold=0.1)).eval(), Ledger()
    x = torch.rand(2, 3, 1, 8, 8)
    assert torch.equal(Meter(ledger)(network, x).steps, BPTT()(network, x).steps)
    rates = ledger.rates(network)
    assert len(rates) == 17
    assert next(iter(rates)) == "stem.2"
    assert 0 < ledger.mean_rate() < 1
    stem = BPTT()(network.stem, x)
    assert rates["stem.2"] == pytest.approx(float(stem.rate.mean()))


# folder -----------------------------------------------------------------------------------------------------------------


def test_a_folder_is_never_written_over(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", TINY, {})
    with pytest.raises(ValueError, match="already contains another run"):
        RunFolder.create(tmp_path / "run", TINY, {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is not empty: choose another"):
        RunFolder.create(tmp_path / "other", TINY, {})
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        RunFolder.create(tmp_path / "file", TINY, {})
    with pytest.raises(ValueError, match="can't be written"):
        RunFolder.create(tmp_path / "file" / "inside", TINY, {})
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", TINY, {})


def test_a_broken_run_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains no run"):
        RunFolder.open(tmp_path)
    folder = RunFolder.create(tmp_path / "run", TINY, {})
    network = resnet18(width=2)
    with pytest.raises(ValueError, match="has not finished its first epoch"):
        folder.load_weights("best", network)
    folder.save_weights("best", network, {})
    with pytest.raises(ValueError, match=r"best.safetensors is of another network .*: size mismatch"):
        folder.load_weights("best", resnet18(width=3))
    file = folder.path / "best.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(ValueError, match="is truncated"):
        folder.load_weights("best", network)
    record = folder.path / "run.json"
    for text, words in (
        ("{", "can't be read as JSON"),
        ("[" * 100_000, "can't be read as JSON"),
        ("[]", "contains a list instead of a record"),
        ('{"format": 1}', "is not of format 2"),
        ('{"format": 2, "run": {"type": "Run", "T": 0}}', "has no field 'data'"),
    ):
        record.write_text(text)
        with pytest.raises(ValueError, match=words):
            RunFolder.open(folder.path).config()


def test_the_environment_card_names_what_matters() -> None:
    env = environment.card()
    assert env["packages"]["torch"] == torch.__version__
    assert env["cores"] >= 1
    assert isinstance(environment.cpu_flags(), set)
    json.dumps(env)
