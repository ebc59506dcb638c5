"""A speedrun: its line in the table of records, its plan in a file, and going on after a stop."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from subprocess import CompletedProcess

import pytest

from spikerate import CrossEntropy, SelfDistillation
from spikerate.data import Data
from spikerate.models import macs, resnet18, step_macs
from spikerate.runs.config import Model, Phase, Run
from spikerate.runs.presets import PRESETS
from spikerate.runs.record import RunFolder
from spikerate.runs.speedrun import COLUMNS, Plan, against_rules, markdown, pflop, rows
from support.processes import Processes, wait_for
from support.runs import assert_same

Spikerate = Callable[..., CompletedProcess[str]]
WORDS = ["speedrun", "digits-rate", "--width", "2", "--T", "2", "--batch", "300", "--epochs", "2", "--curriculum", "1:0.5"]
WORDS += ["--averaging", "flip"]


@pytest.fixture(scope="module")
def base(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speedrun")
    done = processes.run(*WORDS, "--seeds", "2", "--out", "one", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "told").write_text(done.stdout)
    return folder / "one"


def test_the_line_has_what_the_runs_have(base: Path) -> None:
    plan = Plan.read(base)
    folders = {seed: RunFolder.open(base / f"seed{seed}") for seed in (0, 1)}
    lines = rows(plan, folders)
    found, averaged = (dict(zip(COLUMNS, line, strict=True)) for line in lines)
    results = [folder.result() for folder in folders.values()]
    tests = [100 * result["test_accuracy"] for result in results]
    assert found["test, %"] == f"{fmean(tests):.2f} ± {stdev(tests):.2f}"
    recipe = "digits-rate (model.width 2, T 2, epochs 2, curriculum 1:0.5, batch 300)"
    assert (found["recipe"], found["T"], found["seeds"]) == (recipe, "1 -> 2", "2 (0, 1)")
    assert found["spikes an image"] == f"{fmean(result['spikes_per_image'] for result in results):,.0f}"
    assert all(markdown(line) in (base.parent / "told").read_text() for line in lines)
    apart = [result["averaged"] for result in results]
    assert averaged["recipe"] == f"{recipe}, averaged (flip)"
    assert averaged["test, %"].startswith(f"{100 * fmean(result['test_accuracy'] for result in apart):.2f} ±")
    assert averaged["validation, %"].startswith(f"{100 * fmean(result['validation_accuracy'] for result in apart):.2f} ±")
    assert averaged["spikes an image"] == f"{fmean(result['spikes_per_image'] for result in apart):,.0f}"
    differ = {"recipe", "validation, %", "test, %", "spikes an image"}
    assert {name for name in COLUMNS if found[name] != averaged[name]} <= differ
    trained = [sum(line["train_seconds"] for line in folder.metrics()) / 60 for folder in folders.values()]
    assert found["training, min"] == f"{fmean(trained):.1f}"
    mac = sum(macs(resnet18(10, 1, 2), (1, 8, 8)).values())
    passes = 0.5 * 3 + 0.5 * 4
    assert pflop(plan.run, folders[0].about()["data"]) == pytest.approx(2 * mac * passes * 1257 * 2 / 1e15)
    assert found["PFLOP"] == f"{2 * mac * passes * 1257 * 2 / 1e15:.3g}"


def test_a_recipe_is_called_by_what_is_not_its_presets() -> None:
    run = PRESETS["cifar10-fast-rate"].run
    elsewhere = replace(run, data=replace(run.data, path=Path("there")), device="cpu", seed=3, averaging="flip")
    assert [Plan("cifar10-fast-rate", r, (0,), "").recipe for r in (run, elsewhere)] == 2 * ["cifar10-fast-rate"]
    other = replace(elsewhere, epochs=2, data=replace(run.data, validation=0))
    assert Plan("cifar10-fast-rate", other, (0,), "").recipe == "cifar10-fast-rate (data.validation 0, epochs 2)"
    assert Plan("renamed", run, (0,), "").recipe == "renamed"


def test_what_the_rules_keep_out_of_the_table_is_told(base: Path) -> None:
    plan, folders = Plan.read(base), {seed: RunFolder.open(base / f"seed{seed}") for seed in (0, 1)}
    told = against_rules(plan, folders)
    assert all(f"not for the table of records: {reason}" in (base.parent / "told").read_text() for reason in told)
    rules = [reason.rpartition("(")[2] for reason in told]
    assert rules[:2] == ["rule 1)", "rule 4)"] and set(rules[2:]) <= {"rule 5)"}
    kept = Plan("cifar10-fast-rate", PRESETS["cifar10-fast-rate"].run, (0, 1, 2), "")
    assert against_rules(kept, {}) == []
    assert "the seeds are 1, 2, 3" in against_rules(replace(kept, seeds=(1, 2, 3)), {})[0]
    whole = replace(kept.run, data=replace(kept.run.data, validation=0))
    assert "data.validation is 0, and not 5,000" in against_rules(replace(kept, run=whole), {})[0]


def test_the_spikes_of_an_image_are_counted(base: Path) -> None:
    """The rate of each layer times its neurons and steps."""
    result = RunFolder.open(base / "seed0").result()
    neurons = {"stem": 2 * 64, "stage1": 4 * 2 * 64, "stage2": 4 * 4 * 16, "stage3": 4 * 8 * 4, "stage4": 4 * 16 * 1}
    by_hand = 0.0
    for path, rate in result["firing_rates"].items():
        part = next(name for name in neurons if name in path)
        layers = sum(part in other for other in result["firing_rates"])
        by_hand += rate * 2 * neurons[part] / layers
    assert result["spikes_per_image"] == pytest.approx(by_hand, rel=1e-6)


def test_a_speedrun_that_was_stopped_goes_on_to_the_same(
    base: Path, processes: Processes, spikerate: Spikerate, tmp_path: Path
) -> None:
    stopped = processes.run(
        *WORDS, "--seeds", "2", "--out", "two", cwd=tmp_path, kill=signal.SIGTERM,
        when=lambda: wait_for(tmp_path / "two" / "seed0" / "metrics.jsonl"),
    )  # fmt: skip
    assert stopped.returncode in (0, 143)
    if stopped.returncode:
        assert "continue by: spikerate speedrun --resume two" in stopped.stdout
    done = spikerate("speedrun", "--resume", "two")
    assert done.returncode == 0, done.stderr
    for seed in ("seed0", "seed1"):
        assert_same(base / seed, tmp_path / "two" / seed)


def test_what_is_no_speedrun_is_a_sentence(base: Path, spikerate: Spikerate, tmp_path: Path) -> None:
    (tmp_path / "altered").mkdir()
    plan = json.loads((base / "speedrun.json").read_text())
    (tmp_path / "altered" / "speedrun.json").write_text(json.dumps(plan | {"seeds": ["x"]}))
    for words, said in (
        (["--resume", "nowhere"], "nowhere contains no speedrun (no speedrun.json)"),
        (["--resume", "altered"], "altered/speedrun.json is no plan of a speedrun: its seeds are no whole numbers"),
        ([*WORDS[1:], "--out", str(base)], "is not empty: choose another by --out"),
        ([*WORDS[1:], "--seeds", "0"], "seeds is 0"),
        (["cifar10-fast-rate", "--data", "nowhere", "--out", "gone"], "the data folder nowhere does not exist"),
    ):
        done = spikerate("speedrun", *words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert not (tmp_path / "gone").exists()


def test_a_plan_is_withdrawn_where_nothing_has_begun(tmp_path: Path) -> None:
    plan = Plan("cifar10-fast-rate", PRESETS["cifar10-fast-rate"].run, (0,), "")
    for name, begun in (("begun", True), ("not", False)):
        plan.begin(tmp_path / name)
        if begun:
            (tmp_path / name / "seed0").mkdir()
        plan.withdraw(tmp_path / name)
        assert (tmp_path / name / "speedrun.json").exists() == begun == (tmp_path / name).exists()


def test_the_twins_of_a_recipe_differ_in_the_method_only() -> None:
    rate, ann, bptt, esd = (PRESETS[f"cifar10-fast-{name}"].run for name in ("rate", "ann", "bptt", "esd"))
    assert isinstance(rate.loss, CrossEntropy) and isinstance(esd.loss, SelfDistillation)
    assert esd.loss.smoothing == bptt.loss.smoothing == rate.loss.smoothing > 0  # type: ignore[attr-defined]
    assert replace(bptt, rule=rate.rule) == rate
    assert replace(esd, loss=rate.loss) == rate
    assert replace(ann, rule=rate.rule, neuron=rate.neuron, T=rate.T, curriculum=rate.curriculum) == rate
    assert rate.data.validation == 5000 and rate.T <= 4


def test_a_network_of_any_kind_is_counted_once_for_a_step() -> None:
    body = resnet18(10, 3, 4)
    assert step_macs(body, (3, 16, 16)) == sum(macs(body, (3, 16, 16)).values())
    run = Run(data=Data("digits"), model=Model(width=2), curriculum=(Phase(1, 0.5),))
    data = {"shape": [1, 8, 8], "classes": list("0123456789"), "sizes": {"train": 100}}
    assert pflop(run, data) < pflop(replace(run, curriculum=()), data)
