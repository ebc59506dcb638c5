"""Presets against the papers' settings, and each kind of them run for one short epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from spikerate import BPTT, OTTT, SLTT, TET, CrossEntropy, Dspike, RateBP, Search, SelfDistillation
from spikerate.cli import views
from spikerate.cli.main import main
from spikerate.data import SETS, Augment, Data, DataSet, load
from spikerate.runs.config import Model, Neuron, Rectified, Run
from spikerate.runs.estimate import in_words, least_seconds, training_flops
from spikerate.runs.optim import AdamW
from spikerate.runs.presets import ESD, MAX, PRESETS, RATE, SOUNDS, headline, preset
from spikerate.runs.record import RunFolder
from spikerate.runs.train import Trainer
from spikerate.system.codec import decode, encode
from support.images import write_folder, write_set
from support.recordings import write_cifar10_dvs, write_gestures, write_n_mnist
from support.runs import Silent
from support.sounds import write_set as write_sounds

CIFAR = Augment(crop=4, flip=True, autoaugment="cifar10", cutout=16)
IMAGENET = Augment(resized_crop=True, flip=True)
# As the papers have them: epochs, batch, lr, weight decay, T, augmentation, size, split.
SETTINGS = {
    ("cifar10", RATE): (300, 128, 0.1, 5e-4, 4, CIFAR, None, 0),
    ("cifar100", RATE): (300, 128, 0.1, 5e-4, 4, CIFAR, None, 0),
    ("imagenet", RATE): (100, 512, 0.2, 2e-5, 4, IMAGENET, None, 0),
    ("cifar10-dvs", RATE): (300, 128, 0.1, 5e-4, 10, Augment(flip=True, roll=5), 48, 1000),
    ("cifar10", ESD): (300, 128, 0.1, 5e-4, 6, CIFAR, None, 0),
    ("cifar100", ESD): (300, 128, 0.1, 5e-4, 6, CIFAR, None, 0),
    ("imagenet", ESD): (100, 512, 0.2, 2e-5, 4, IMAGENET, None, 0),
    ("cifar10-dvs", ESD): (
        300,
        32,
        0.1,
        5e-4,
        10,
        Augment(flip=True, roll=5, rotation=30, cutout=16, one_of=True),
        48,
        1000,
    ),
}
# alpha, beta, tau, alpha of the final head.
DISTILLATION = {
    "cifar10": (1.0, 0.3, 3.0, None),
    "cifar100": (1.0, 0.3, 3.0, None),
    "imagenet": (0.7, 0.3, 3.0, 1.0),
    "cifar10-dvs": (1.0, 0.1, 3.0, None),
}
NETWORKS = {
    ("cifar10", RATE): {"resnet18", "resnet19", "vgg11", "vgg13", "vggsnn"},
    ("cifar100", RATE): {"resnet18", "resnet19", "vgg11", "vgg13", "vggsnn"},
    ("imagenet", RATE): {"preact-resnet34", "sew-resnet34"},
    ("cifar10-dvs", RATE): {"vggsnn"},
    ("cifar10", ESD): {"resnet18", "resnet19"},
    ("cifar100", ESD): {"resnet18", "resnet19"},
    ("imagenet", ESD): {"preact-resnet34"},
    ("cifar10-dvs", ESD): {"vggsnn"},
}
RULES = {
    "esd": (RateBP(), SelfDistillation, "1/T"),
    "rate": (RateBP(), CrossEntropy, "1/T"),
    "rate-s": (RateBP(chunk=1), CrossEntropy, "1/T"),
    "bptt": (BPTT(), CrossEntropy, "1"),
}
PUBLISHED = [name for name, found in PRESETS.items() if found.paper in (RATE, ESD)]


def method_of(name: str) -> str:
    return "rate-s" if name.endswith("-rate-s") else name.rpartition("-")[2]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_preset_has_the_papers_settings(name: str) -> None:
    found = PRESETS[name]
    run, optim = found.run, found.run.optim
    settings = (
        run.epochs,
        run.batch,
        optim.lr,
        optim.weight_decay,
        run.T,
        run.data.augment,
        run.data.size,
        run.data.test,
    )
    assert settings == SETTINGS[run.data.name, found.paper]
    rule, loss, scale = RULES[method_of(name)]
    assert (run.rule, type(run.loss), optim.loss_scale, optim.momentum) == (rule, loss, scale, 0.9)
    assert isinstance(run.neuron, Neuron)
    assert (run.neuron.decay, run.neuron.threshold, run.neuron.v_reset, run.neuron.detach_reset) == (0.2, 1.0, None, True)
    assert run.neuron.surrogate.alpha == 4  # type: ignore[union-attr]
    if isinstance(run.loss, SelfDistillation):
        loss_settings = (run.loss.alpha, run.loss.beta, run.loss.tau, run.loss.final_alpha)
        assert loss_settings == DISTILLATION[run.data.name]
        assert run.loss.teacher == "reliable"
    assert run.model.width == (128 if run.model.name == "resnet19" else 64)
    assert (run.model.stem, run.model.residual_branches and method_of(name) == "esd") == (
        ("7x7", name == "imagenet-esd") if run.data.name == "imagenet" else ("3x3", False)
    )


def test_each_network_of_the_papers_has_each_method() -> None:
    for (data, paper), networks in NETWORKS.items():
        found = {(p.run.model.name, method_of(n)) for n, p in PRESETS.items() if (p.run.data.name, p.paper) == (data, paper)}
        methods = ("esd",) if paper == ESD else ("rate", "rate-s", "bptt")
        assert found == {(network, method) for network in networks for method in methods}


def test_the_rivals_differ_from_bptt_in_the_method_only() -> None:
    bptt = preset("cifar10-bptt").run
    for name, rule in (("tet", BPTT()), ("ottt", OTTT(chunk=1)), ("sltt", SLTT(chunk=1))):
        run = preset(f"cifar10-{name}").run
        assert (run.rule, run.loss) == (rule, TET())
        assert replace(run, rule=bptt.rule, loss=bptt.loss) == bptt


def test_max_resnet_has_the_recipe_that_is_known_of_the_paper() -> None:
    recipe = {name: found for name, found in PRESETS.items() if found.paper == MAX}
    assert set(recipe) == {f"cifar{k}-max-resnet18{suffix}" for k in (10, 100) for suffix in ("", "-rate", "-esd")}
    for name, found in recipe.items():
        run, augment = found.run, found.run.data.augment
        assert (run.T, run.epochs, run.model, type(run.optim)) == (4, 400, Model("max-resnet18", 64), AdamW)
        assert run.optim.schedule.warmup > 0 and augment.mixup and augment.cutmix and augment.randaugment
        assert isinstance(run.loss, CrossEntropy | SelfDistillation) and run.loss.smoothing == 0.1
        assert ("83.06" if run.data.name == "cifar100" else "97.17") in found.text and "Ours: their numbers" in found.text
        assert run.rule == (BPTT() if name.endswith("resnet18") else RateBP())


COUNTED: dict[tuple[str, Model, str, type], Any] = {}


def counted_once(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Presets of one data set, network and loss have the operations of their network counted once."""

    def once(name: str) -> Callable[..., Any]:
        count, key = getattr(views, name), (name, run.model, run.data.name, type(run.loss))

        def counted(*of: Any) -> Any:
            if key not in COUNTED:
                COUNTED[key] = count(*of)
            return COUNTED[key]

        return counted

    for name in ("macs", "branch_macs", "stage_shapes"):
        monkeypatch.setattr(views, name, once(name))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_goes_through_json_builds_and_says_where_it_is_from(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = PRESETS[name]
    assert decode(Run, json.loads(json.dumps(encode(found.run)))) == found.run
    assert found.headline in found.text
    if name in PUBLISHED:
        for words in ("arXiv", "Authors' result", "Differs"):
            assert words in found.text
    counted_once(monkeypatch, found.run)
    assert main(["show", name]) == 0
    shown = capsys.readouterr().out
    assert ("stage3" if found.paper != SOUNDS else "stage1") in shown
    assert "MACs" in shown
    assert ("training takes" in shown) == (found.run.data.name not in ("images", "events"))


def test_the_cost_is_counted() -> None:
    run = Run(T=4, epochs=2)
    assert training_flops(run, 10, 4, 7) == 2 * (10 * 6 + 3 * 4) * 7 * 2
    assert training_flops(replace(run, rule=BPTT()), 10, 0, 7) == 2 * 10 * 12 * 7 * 2
    searched = replace(run, neuron=Neuron(surrogate=Dspike()), search=Search(samples=5))
    assert training_flops(searched, 10, 4, 7, 9) == training_flops(run, 10, 4, 7) + 2 * 2 * 9 * 5 * 4 * 10 * 2
    assert least_seconds(run, 1e12) > least_seconds(replace(run, precision="bf16", compile=True), 1e12)
    assert [in_words(s) for s in (40, 60 * 30, 3600 * 5, 86400 * 33)] == ["40 s", "30 min", "5 h", "33 days"]


# one short epoch of each kind ------------------------------------------------------------------------------------------


def test_the_headline_of_a_run_is_not_that_of_its_preset() -> None:
    run = preset("digits-bptt").run
    assert headline("digits-bptt", run) == PRESETS["digits-bptt"].headline == "Digits, small ResNet-18, T = 4: BPTT"
    assert headline("digits-bptt", replace(run, T=2)) == "Digits, small ResNet-18, T = 2: BPTT"
    assert headline("digits-bptt", replace(run, model=Model("vgg11"))) == "digits, vgg11, T = 4: BPTT"
    assert headline("digits-bptt", replace(run, loss=TET())) == "Digits, small ResNet-18, T = 4: BPTT, changed"
    assert headline("digits-bptt", replace(run, T=1, neuron=Rectified())) == headline("my own", run) == ""


def covers(name: str) -> set[Any]:
    """What a preset has: its data set, its network, and each two of the kind of data, the family of networks, the method."""
    found = PRESETS[name]
    data, model = found.run.data.name, found.run.model.name
    return {data, model, *combinations((SETS[data].kind, model.rstrip("0123456789"), found.method), 2)}


def pairwise() -> list[str]:
    """Presets that have together whatever any has: again and again the one with the most that is still missing."""
    missing, chosen = set().union(*map(covers, PRESETS)), []
    while missing:
        chosen.append(max(PRESETS, key=lambda name: len(covers(name) & missing)))
        missing -= covers(chosen[-1])
    return chosen


@pytest.fixture(scope="session")
def data_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Data, int], DataSet]:
    """Every data set small, in its official layout."""
    place, stored = tmp_path_factory.mktemp("sets"), tmp_path_factory.mktemp("cache")
    for name, write in (("cifar10-dvs", write_cifar10_dvs), ("dvs128-gesture", write_gestures), ("n-mnist", write_n_mnist)):
        (place / name).mkdir()
        write(place / name)
    for layout in ("cifar-10-batches-py", "cifar-100-python", "mnist", "fashion-mnist"):
        write_set(place, layout, 20)
    write_folder(place / "images", n=8)
    for name in ("shd", "ssc"):
        write_sounds(place, name)

    @cache
    def get(data: Data, T: int) -> DataSet:
        if SETS[data.name].built_in:
            return load(replace(data, subset=8, cache=stored), T)
        # Three classes for those of ImageNet, and recordings of CIFAR10-DVS instead of one's own.
        name = {"imagenet": "images", "events": "cifar10-dvs"}.get(data.name, data.name)
        folders = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "shd": "", "ssc": ""}
        folder = folders.get(name, name)
        test = 4 if name == "cifar10-dvs" else 0
        validation = 0 if name == "ssc" else 4
        small = replace(data, name=name, path=place / folder, validation=validation, test=test, sensor=None, workers=0)
        return load(replace(small, subset=8, cache=stored), T)

    return get


@pytest.mark.parametrize("name", pairwise())
def test_a_preset_runs_one_short_epoch(name: str, data_of: Callable[[Data, int], DataSet], tmp_path: Path) -> None:
    run = PRESETS[name].run
    data = data_of(replace(run.data, augment=Augment()), run.T)
    search = run.search and replace(run.search, samples=4, directions=2)
    heads = 8 if run.model.heads else None
    tiny = replace(run, model=replace(run.model, width=2, heads=heads), epochs=1, batch=4, compile=False, search=search)
    state = Trainer(tiny, data, RunFolder.create(tmp_path / "run", tiny, {}), Silent()).train()
    assert state.epoch == 1
    assert 0 < state.rows[0]["loss"] < 100
