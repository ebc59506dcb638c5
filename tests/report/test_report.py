"""The report of runs: what the folder keeps for it, how runs are compared, and the page."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spikerate import BPTT, OTTT, SLTT, TET, RateBP, SelfDistillation
from spikerate.data import Data, DataSet, load
from spikerate.measure.evaluate import Answers, answers
from spikerate.report import charts
from spikerate.report.charts import Series, Stat
from spikerate.report.folders import Finding
from spikerate.report.gather import gather
from spikerate.report.page import check_place, write
from spikerate.report.reproducibility import references, seven_questions
from spikerate.runs.config import Model, Neuron, Rectified, Round, Run
from spikerate.runs.examples import Examples
from spikerate.runs.record import RunFolder
from spikerate.runs.train import build_network
from spikerate.surrogate import Dspike
from spikerate.system.files import write_json

RUN = Run(model=Model(width=2), T=2, epochs=3, loss=SelfDistillation())
ABOUT: dict[str, Any] = {
    "preset": "digits-esd",
    "command": "spikerate train digits-esd",
    "data": {
        "name": "digits",
        "licence": "CC BY 4.0",
        "sizes": {"train": 90, "validation": 10, "test": 20},
        "split": "as distributed",
        "classes": ["cat", "dog", "eel"],
        "sha256": {"digits.npz": "beef"},
    },
    "source": {"commit": "abc123", "diff": None},
    "environment": {"cpu": "a processor", "gpus": [], "packages": {"torch": "2.13.0"}},
}
RESULT: dict[str, Any] = {
    "epoch": 2,
    "validation_accuracy": 0.7,
    "test_accuracy": 0.6,
    "test_interval_95": [0.4, 0.8],
    "test_images": 20,
    "test_accuracy_at_step": [0.5, 0.6],
    "firing_rate": 0.2,
    "firing_rates": {"body.stem.2": 0.1, "body.stages.stage1.0.activation1": 0.0},
    "firing_rates_at_step": {"body.stem.2": [0.08, 0.12], "body.stages.stage1.0.activation1": [0.0, 0.0]},
    "confusion": [[5, 2, 0], [1, 4, 0], [0, 5, 3]],
    "operations": {
        "body.stem.0": {"macs": 1000.0, "acs": 0.0, "dense_macs": 2000, "input": "real"},
        "body.stages.stage1.0.conv1": {"macs": 0.0, "acs": 500.0, "dense_macs": 4000, "input": "binary"},
    },
    "energy": {"snn_nj": 5.05, "ann_nj": 13.8, "synaptic_operations": 1500.0, "macs": 1000.0, "acs": 500.0},
}
SECTIONS = {"results", "curves", "time", "rates", "confusion", "examples", "energy", "card", "again"}


def examples(K: int = 3, layers: tuple[str, ...] = ("body.stem.2", "body.stages.stage1.0.activation1")) -> Examples:
    """Two samples of 5 x 4 pixels, the first of them right."""
    labels = torch.tensor([0, 2])
    logits = torch.zeros(2, 2, K)
    logits[0, :, 0] = logits[1, :, 1] = 3.0
    spikes = torch.randint(2, (2, len(layers), 6, 2), dtype=torch.uint8)
    pictures = torch.randint(256, (2, 3, 5, 4), dtype=torch.uint8)
    return Examples(torch.tensor([0, 7]), labels, logits, pictures, spikes, spikes.float().mean(2), layers)


def make(
    path: Path,
    run: Run = RUN,
    about: Mapping[str, Any] = ABOUT,
    result: Mapping[str, Any] | None = RESULT,
    epochs: int = 3,
    with_examples: bool = True,
) -> Path:
    """A run folder as training leaves it."""
    folder = RunFolder.create(path, run, about)
    names = {"loss": 3.0, "ce": 2.0, "kl": 1.0, "reliable": 0.5, "accuracy": 0.4, "accuracy/exit1": 0.3, "validation": 0.5}
    rows = [
        {"epoch": k, "lr": 0.1, "seconds": 2.0, "firing_rate": 0.2}
        | {name: value + 0.1 * k for name, value in names.items()}
        for k in range(1, epochs + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if result is not None:
        folder.save_result(result)
    if with_examples:
        examples().save(path)
    return path


class Page(HTMLParser):
    """Reads a page, and fails where it is not well-formed or wants something from elsewhere."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        assert {link.removeprefix("#") for link in self.links} <= set(self.ids)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            self.ids += [value or ""] if name == "id" else []
            self.links += [value or ""] if name == "href" else []
            assert name != "href" or (value or "").startswith("#")
            assert name not in ("src", "srcset", "action", "data", "xlink:href") or (value or "").startswith(
                "data:image/png"
            )

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def page_of(*paths: Path, to: Path) -> Page:
    write(gather(paths), to)
    text = to.read_text()
    assert not {"script", "link", "iframe", "object", "base"} & set(Page(text).tags)
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text and "url(" not in text
    return Page(text)


# what the folder keeps --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30), st.integers(1, 8))
def test_the_confusion_matrix_counts_every_sample_once_and_the_chosen_ones_are_half_wrong(
    pairs: list[tuple[int, int]], n: int
) -> None:
    labels, found = torch.tensor(pairs).T
    given = Answers(torch.stack([labels, found], 1), labels, 4)
    expected = [[sum(pair == (i, j) for pair in pairs) for j in range(4)] for i in range(4)]
    assert given.confusion().tolist() == expected
    assert [a.right for a in given.at_step] == [len(pairs), sum(a == b for a, b in pairs)]
    chosen = given.some(n).tolist()
    wrong = [k for k in chosen if pairs[k][0] != pairs[k][1]]
    assert len(set(chosen)) == len(chosen) == min(n, len(pairs))
    in_all = len(pairs) - given.at_step[-1].right
    assert len(wrong) == min(in_all, max(n // 2, n - given.at_step[-1].right))
    assert chosen == sorted(set(chosen) - set(wrong)) + sorted(wrong)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load(Data("digits"), 1)


@pytest.mark.parametrize(
    "run",
    [replace(RUN, neuron=Neuron(threshold=0.01)), replace(RUN, T=1, neuron=Rectified(), rule=BPTT(), loss=TET())],
    ids=["SNN", "ANN"],
)
def test_examples_are_what_the_network_does(run: Run, digits: DataSet, tmp_path: Path) -> None:
    network = build_network(run, 10, digits.shape, torch.device("cpu"))
    given = answers(network, digits, digits.test, run.T)
    index = given.some(8)
    Examples.take(network, digits, index, run).save(tmp_path)
    kept = Examples.read(tmp_path)
    assert kept is not None and network.training
    assert torch.equal(kept.index, index) and torch.equal(kept.labels, digits.test.labels[index])
    assert torch.equal(kept.logits.mean(1).argmax(1), given.found[index, -1])
    assert kept.layers[0] == "body.stem.2" if run.spiking else "stem.2"
    assert kept.spikes.max() == 1 and kept.spikes.shape[:2] == kept.rates.shape[:2] == (8, 17)
    assert kept.spikes.shape[3] == kept.rates.shape[2] == run.T
    assert bool((kept.rates <= 1).all()) and 0 < kept.rates.mean() < 1
    assert kept.pictures.shape == (8, 3, 8, 8) and kept.pictures.max() == 255
    assert (tmp_path / "examples.safetensors").stat().st_size < 100_000


def test_recordings_and_large_images_become_small_pictures() -> None:
    from spikerate.runs.examples import _pictures

    events = torch.zeros(1, 3, 2, 8, 8)
    events[0, 0, 1, 2, 3] = 4.0
    picture = _pictures(events)
    assert picture.shape == (1, 3, 8, 8) and picture[0, 2, 2, 3] > picture[0, 0, 2, 3] > 0 and picture.count_nonzero() == 3
    assert _pictures(torch.rand(2, 3, 200, 100)).shape == (2, 3, 96, 48)
    assert _pictures(torch.ones(1, 1, 4, 4)).unique().tolist() == [255]


@settings(max_examples=30, deadline=None)
@given(st.recursive(st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_a_list_of_numbers_takes_one_line(value: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.json"
        write_json(file, {"a": value, "matrix": [[1, 2.5], [3, 4]]})
        assert json.loads(file.read_text()) == {"a": value, "matrix": [[1, 2.5], [3, 4]]}
        assert '  "matrix": [\n    [1, 2.5],\n    [3, 4]\n  ]' in file.read_text()


def test_training_keeps_what_the_report_shows(
    spikerate: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("train", "digits-esd", "--epochs", "1", "--width", "2", "--subset", "120", "--T", "2", "--out", "run")
    assert spikerate(*train).returncode == 0
    result = RunFolder(tmp_path / "run").result()
    confusion = torch.tensor(result["confusion"])
    assert confusion.shape == (10, 10) and confusion.sum() == result["test_images"]
    assert confusion.trace() / confusion.sum() == pytest.approx(result["test_accuracy"])
    done = spikerate("report", "run")
    assert done.returncode == 0 and "run/report.html" in done.stdout
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert set(page.ids) >= SECTIONS and page.tags.count("img") == 8
    assert spikerate("report", "run").returncode == 0  # in the place of the old one


# the page ---------------------------------------------------------------------------------------------------------------


def test_every_section_shows_its_figures(tmp_path: Path) -> None:
    page = page_of(make(tmp_path / "run"), to=tmp_path / "page.html")
    assert set(page.ids) == SECTIONS
    for words in (
        "test accuracy 60.00 % 95 % interval 40.00 % to 80.00 %, 20 samples",
        "validation accuracy 70.00 % epoch 2 of 3",
        "distillation 1.30",
        "exit 1 60.00 %",
        "training samples that an exit gets right 80.00 %",
        "digits-esd 60.00 %",
        "never fires",
        "0.08 0.12",
        "eel dog 5 62.50 %",
        "✓ right",
        "✗ wrong",
        "taken for dog",
        "5.05 nJ",
        "13.8 nJ",
        "1.50 k synaptic operations",
        "all 1.00 k 500 3.00 k 5.05 nJ",
        "Which data sets, under which licences?",
        "CC BY 4.0",
        "git checkout abc123",
        "spikerate train digits-esd",
        f"spikerate reproduce {tmp_path / 'run'}",
    ):
        assert words in page.text, words
    assert page.tags.count("img") == 2 and page.tags.count("figure") == 6


def test_test_time_averaging_stands_apart(tmp_path: Path) -> None:
    averaged = {"averaging": "flip", "views": 2, "test_accuracy": 0.65, "spikes_per_image": 2468.0}
    page = page_of(make(tmp_path / "run", result={**RESULT, "averaged": averaged}), to=tmp_path / "page.html")
    assert "test accuracy 60.00 %" in page.text
    assert "averaged over 2 views 65.00 % test accuracy, with 2,468 spikes per sample" in page.text


def test_what_an_earlier_version_did_not_write_is_said_to_be_missing(tmp_path: Path) -> None:
    old = {
        key: RESULT[key]
        for key in ("epoch", "test_accuracy", "test_interval_95", "test_images", "firing_rate", "firing_rates")
    }
    page = page_of(make(tmp_path / "run", result=old, with_examples=False), to=tmp_path / "page.html")
    for words in (
        "no rates at each time step",
        "no confusion matrix",
        "has no examples",
        "no operations",
        "accuracy at each step",
    ):
        assert words in page.text, words


def test_a_run_that_is_not_finished_is_told_so_far(tmp_path: Path) -> None:
    begun = make(tmp_path / "begun", result=None, epochs=0, with_examples=False)
    (begun / "metrics.jsonl").unlink()
    page = page_of(begun, to=tmp_path / "page.html")
    assert f"{begun} is not finished: 0 of 3 epochs" in page.text and "No epoch is finished yet" in page.text
    under_way = make(tmp_path / "under way", replace(RUN, seed=1), result=None, epochs=2, with_examples=False)
    page = page_of(begun, under_way, make(tmp_path / "done", replace(RUN, seed=2)), to=tmp_path / "page.html")
    assert "under way is not finished: 2 of 3 epochs" in page.text and "60.00 %" in page.text


def test_seeds_are_one_group_with_mean_and_deviation(tmp_path: Path) -> None:
    values = [0.6, 0.65, 0.55]
    for seed, value in enumerate(values):
        make(tmp_path / "all" / f"seed{seed}", replace(RUN, seed=seed), result=RESULT | {"test_accuracy": value})
    page = page_of(tmp_path / "all", to=tmp_path / "page.html")
    sd = (sum((v - 0.6) ** 2 for v in values) / 2) ** 0.5
    assert f"60.00 ± {100 * sd:.2f} %" in page.text and "3 runs, seeds 0, 1, 2" in page.text
    (group,) = gather([tmp_path / "all"]).groups
    assert group.test == Stat(statistics.fmean(values), statistics.stdev(values), 3)
    assert group.confusion is not None and group.confusion.rows[0][1][0][0] == 15
    assert group.energy is not None and group.energy.layers["body.stages.stage1.0.conv1"].acs == 500
    assert group.energy.snn_nj == pytest.approx(5.05)
    assert group.joules == Stat(pytest.approx(5.05e-9), 0.0, 3) and "5.05 ± 0.00 nJ" in page.text
    assert [layer.name for layer in group.layers] == ["stem.2", "stage1.0.activation1"]


def test_settings_are_compared_side_by_side(tmp_path: Path) -> None:
    cifar = replace(RUN, data=Data("cifar10", Path("here")))
    moved = replace(cifar, seed=1, data=Data("cifar10", Path("there")))
    esd = [make(tmp_path / "esd0", cifar), make(tmp_path / "esd1", moved)]
    bptt = make(tmp_path / "bptt", replace(cifar, rule=BPTT()), ABOUT | {"preset": "digits-bptt"})
    other = make(tmp_path / "other", replace(cifar, rule=BPTT(), T=4), ABOUT | {"preset": "digits-bptt"})
    report = gather([*esd, bptt, other])
    assert [group.name for group in report.groups] == ["digits-esd", "digits-bptt", "digits-bptt (2)"]
    assert [len(group.runs) for group in report.groups] == [2, 1, 1]
    assert sorted(report.differing) == [
        ("T", ["2", "2", "4"]),
        ("rule", ["RateBP", "BPTT", "BPTT"]),
        ("rule.checkpoint", ["-", "False", "False"]),
    ]
    assert "Accuracy: validation" in [chart.title for chart in report.curves]
    page = page_of(*esd, bptt, other, to=tmp_path / "page.html")
    assert "What differs between the settings" in page.text and page.text.count("Seven questions") == 0
    assert "digits-bptt (2)" in page.text


def test_a_setting_keeps_its_colour_in_every_chart(tmp_path: Path) -> None:
    begun = make(tmp_path / "begun", result=None, epochs=0, with_examples=False)
    ready = make(tmp_path / "ready", replace(RUN, T=4), about=ABOUT | {"preset": "digits-bptt"})
    also = make(tmp_path / "also", replace(RUN, T=4, epochs=4), about=ABOUT | {"preset": "digits-rate"})
    report = gather([begun, ready, also])
    assert [group.name for group in report.groups] == ["digits-esd", "digits-bptt", "digits-rate"]
    for chart in report.curves:
        assert [(line.name, line.place) for line in chart.lines] == [("digits-bptt", 1), ("digits-rate", 2)]
    assert report.strips is not None and [strip.place for strip in report.strips.strips] == [1, 2]
    page_of(begun, ready, also, to=tmp_path / "page.html")
    assert 'class="strip s1"' in (tmp_path / "page.html").read_text()


def test_what_differs_in_secret_is_said(tmp_path: Path) -> None:
    """The code, the machine, the data: not settings, and yet they decide."""
    one, two = (make(tmp_path / "runs" / "more" / f"seed{k}", replace(RUN, seed=k)) for k in (0, 1))
    RunFolder(two).amend(source={"commit": "other", "diff": None}, environment={"cpu": "another"}, ranks=2)
    report = gather([tmp_path / "runs"])
    assert [run.path for run in report.groups[0].runs] == [one, two]
    for what in ("code", "machines or software", "numbers of processes"):
        assert f"digits-esd was made by different {what}; the card has those of {one}" in report.notes
    moved = make(tmp_path / "moved", about=ABOUT | {"resumed": [{"at": "later", "environment": {"cpu": "another"}}]})
    assert [note.split(";")[0] for note in gather([moved]).notes] == [
        "digits-esd was made by different machines or software"
    ]
    data = ABOUT["data"] | {"sha256": {"digits.npz": "cafe"}}
    third = make(tmp_path / "third", about=ABOUT | {"data": data, "ranks": 2, "repeats": "spikerate train it"})
    report = gather([one, third])
    assert [name for name, _ in report.differing] == ["checksums of the data"]
    page = page_of(one, third, to=tmp_path / "page.html")
    assert "torchrun --nproc-per-node 2 -m spikerate train it # or on several machines" in page.text


def test_a_forged_number_of_steps_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    record["run"]["T"] = 10**9
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"run.json: T is 1000000000: give a number of time steps >= 1, and 10,000 at most"):
        gather([folder])


def test_of_many_classes_the_confusions_that_occur_are_told(tmp_path: Path) -> None:
    K = 20_000
    labels = torch.tensor([0, 0, 0, 7, K - 1, K - 1])
    found = torch.tensor([0, 5, 5, 7, 3, K - 1]).unsqueeze(1)
    rows = Answers(found, labels, K).confusions().tolist()
    assert rows == [[0, 0, 1], [0, 5, 2], [7, 7, 1], [K - 1, 3, 1], [K - 1, K - 1, 1]]
    folder = make(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    del result["confusion"]
    (folder / "result.json").write_text(json.dumps(result | {"confusions": rows}))
    confusion = gather([folder]).groups[0].confusion
    assert confusion is not None and not confusion.rows
    assert confusion.often == [("0", "5", 2, pytest.approx(2 / 3)), (str(K - 1), "3", 1, 0.5)]


def test_metrics_of_one_group_alone_share_a_chart(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", replace(RUN, rule=BPTT()), ABOUT | {"preset": "digits-bptt"})
    rows = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k not in ("ce", "kl", "reliable", "accuracy/exit1")} for row in rows]
    (plain / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    charts = {chart.title: [line.name for line in chart.lines] for chart in gather([make(tmp_path / "esd"), plain]).curves}
    assert charts["Loss: total"] == ["digits-esd", "digits-bptt"]
    assert charts["Loss, digits-esd"] == ["cross-entropy", "distillation"]
    assert charts["Accuracy of the exits in training, digits-esd"] == ["exit 1", "final"]
    assert "Reliable share, digits-esd" in charts


def test_the_same_seed_twice_is_noted_and_the_same_folder_refused(tmp_path: Path) -> None:
    one, again = make(tmp_path / "one"), make(tmp_path / "again")
    assert any("seed 0 more than once" in note for note in gather([one, again]).notes)
    with pytest.raises(ValueError, match="is given twice"):
        gather([one, tmp_path / "." / "one"])


def test_rounds_before_are_told(tmp_path: Path) -> None:
    run = replace(RUN, before=(Round(None, 2, 0.1), Round(4, 3, 0.1)), loss=TET(), rule=BPTT())
    path = make(tmp_path / "run", run)
    make(path / "round1-ann", run.rounds[0], result=RESULT | {"test_accuracy": 0.9})
    page = page_of(tmp_path, to=tmp_path / "page.html")
    assert "ANN, 2 epochs (90.00 %) → T = 4, 3 epochs (not finished) → T = 2, 3 epochs (60.00 %)" in page.text
    assert "training time 12.0 s T = 2, 3 epochs, including earlier rounds" in page.text
    assert gather([path / "round1-ann"]).groups[0].headline == "", "that of the preset is of the whole run"


@pytest.mark.parametrize("K", [20, 21, 200])
def test_many_classes_are_listed_by_their_confusions(K: int, tmp_path: Path) -> None:
    counts = torch.eye(K, dtype=torch.int64) * 9
    counts[3, 5], counts[6, 2] = 4, 1
    about = ABOUT | {"data": ABOUT["data"] | {"classes": [f"class {k}" for k in range(K)]}}
    path = make(tmp_path / "run", about=about, result=RESULT | {"confusion": counts.tolist()}, with_examples=False)
    page = page_of(path, to=tmp_path / "page.html")
    assert re.search(r"class 3 class 5 4 30.77 % class 6 class 2 1 10.00 %", page.text)
    assert page.tags.count("td") < 900
    (group,) = gather([path]).groups
    assert group.confusion is not None and len(group.confusion.rows) == (K if K == 20 else 0)


def test_no_confusion_is_a_sentence(tmp_path: Path) -> None:
    path = make(tmp_path / "run", result=RESULT | {"confusion": [[7, 0, 0], [0, 6, 0], [0, 0, 0]]})
    assert "No sample was classified wrongly" in page_of(path, to=tmp_path / "page.html").text


def test_whatever_a_person_has_given_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert(\'x\')</script>" onload="y" {{ 7 * 7 }} &amp; ]]> <img src=http://evil>'
    data = ABOUT["data"] | {"classes": [evil] * 3, "licence": evil, "split": evil, "sha256": {evil: evil}, "name": evil}
    environment = {"cpu": evil, "gpus": [evil], "packages": {evil: evil}}
    about = {
        "preset": evil,
        "command": evil,
        "data": data,
        "source": {"commit": evil, "diff": evil},
        "environment": environment,
    }
    result = RESULT | {
        "firing_rates": {evil: 0.1},
        "firing_rates_at_step": {evil: [0.1, 0.1]},
        "operations": {evil: RESULT["operations"]["body.stem.0"]},
    }
    path = make(tmp_path / "<b>'\"&", about=about, result=result, with_examples=False)
    examples(layers=(evil, "b")).save(path)
    other = make(tmp_path / "<i>", replace(RUN, T=4), about, result=None)
    for k, paths in enumerate([(path,), (path, other)]):
        to = tmp_path / f"{k}.html"
        write(gather(paths), to)
        page = Page(to.read_text())
        assert not {"script", "b'\"&", "i>"} & set(page.tags)
        assert page.tags.count("img") == 2 * (k + 1)
        assert evil in "".join(page.words)


# the card ---------------------------------------------------------------------------------------------------------------


def test_the_seven_questions_are_answered() -> None:
    questions = seven_questions(replace(RUN, epochs=7), ABOUT, [0, 1])
    assert len(questions) == 7 and all(question.answers for question in questions)
    answered = {name: text for question in questions for name, text in question.answers}
    assert answered["runs"] == "2, seed 0, 1" and answered["commit"] == "abc123" and answered["GPUs"] == "none"
    assert "epochs 7" in answered["changed from it"] and answered["rule"] == "RateBP"
    assert "validation accuracy" in answered["choice"] and answered["train"] == "90 samples"
    bare = seven_questions(RUN, {"data": {}, "environment": {}}, [0])
    assert len(bare) == 7 and dict(bare[2].answers)["commit"] == "not from a git checkout"
    assert "the last epoch" in dict(bare[4].answers)["choice"]


@pytest.mark.parametrize("rule", [BPTT(), RateBP(), SLTT(), OTTT()])
def test_every_method_has_its_reference(rule: Any) -> None:
    found = references(Run(rule=rule, loss=SelfDistillation(), neuron=Neuron(surrogate=Dspike())))
    assert len(found) == 3 and len(set(found)) == 3
    assert references(Run(rule=BPTT(), loss=TET(), neuron=Rectified(), T=1)) != found


# charts -----------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.dictionaries(st.integers(1, 300), st.lists(st.floats(0, 1), max_size=4), max_size=50), max_size=4),
    st.sampled_from(["share", "number"]),
    st.booleans(),
)
def test_lines_stay_in_their_box(values: list[dict[float, list[float]]], form: Any, zero: bool) -> None:
    drawn = charts.chart("x", [Series(str(k), of) for k, of in enumerate(values)], form, "epoch", zero)
    if drawn is None:
        assert not any(any(of.values()) for of in values)
        return
    assert len(drawn.lines) == sum(any(of.values()) for of in values)
    for line in drawn.lines:
        for path in (line.path, line.band.removesuffix("Z")):
            points = [tuple(map(float, point.split())) for point in path.removeprefix("M").split("L") if point]
            assert all(charts.LEFT - 0.1 <= x <= charts.WIDTH - charts.RIGHT + 0.1 for x, _ in points)
            assert all(charts.TOP - 0.1 <= y <= charts.HEIGHT - charts.BOTTOM + 0.1 for _, y in points)
    assert drawn.x_ticks and drawn.y_ticks


def test_a_long_line_has_no_dots_and_the_kept_epoch_is_marked() -> None:
    long, short = ({float(x): [0.5] for x in range(n)} for n in (100, 10))
    drawn = charts.chart("x", [Series("long", long), Series("short", short, mark=3)], "share", "epoch")
    assert drawn is not None
    one, other = drawn.lines
    assert one.dots == () and one.mark is None and len(other.dots) == 10
    assert other.mark is not None and other.mark.says == "short, epoch 3: 50.00 %"


@pytest.mark.parametrize(
    ("value", "form", "words"),
    [
        (0.5, "share", "50.00 %"),
        (Stat(0.95654, 0.00703, 3), "share", "95.65 ± 0.70 %"),
        (Stat(0.2881, 0.02219, 3), "number", "0.288 ± 0.022"),
        (Stat(26.02, 7.16, 3), "number", "26.0 ± 7.2"),
        (1234.0, "number", "1234"),
        (0.0, "number", "0.0"),
    ],
)
def test_numbers_in_words(value: Any, form: Any, words: str) -> None:
    assert charts.in_words(value, form) == words


# bad input --------------------------------------------------------------------------------------------------------------


def broken(name: str, content: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_text(content)


def altered(**entries: Any) -> Callable[[Path], object]:
    return lambda path: write_json(path / "result.json", RESULT | entries)


def recorded(**entries: Any) -> Callable[[Path], object]:
    return lambda path: RunFolder(path).amend(**entries)


def with_tensors(**tensors: Tensor) -> Callable[[Path], object]:
    return lambda path: replace(examples(), **tensors).save(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (broken("run.json", "{"), "run.json can't be read as JSON"),
        (broken("run.json", '{"format": 9}'), "use the version of spikerate"),
        (broken("metrics.jsonl", '{"epoch": 1'), "metrics.jsonl can't be read as JSON"),
        (broken("metrics.jsonl", '{"loss": 1}'), "a line without an epoch"),
        (broken("result.json", "{"), "result.json can't be read as JSON"),
        (broken("result.json", '{"test_accuracy": 1}'), "result.json is no result"),
        (altered(test_accuracy=float("nan")), "result.json is no result"),
        (altered(test_accuracy="high"), "result.json is no result"),
        (altered(firing_rates=[1]), "result.json is no result"),
        (altered(confusion=[[1, 2]]), "confusion is not square"),
        (altered(confusion=[[1e300]]), "is not a finite number"),
        (altered(confusion=[[-5]]), "a negative count"),
        (altered(test_accuracy=1.5), "1.5 is not between 0 and 1"),
        (broken("metrics.jsonl", "[" * 100_000), "metrics.jsonl can't be read as JSON"),
        (broken("result.json", "null"), "result.json contains a NoneType"),
        (altered(operations={"a": 1}), "result.json is no result"),
        (altered(operations={"a": RESULT["operations"]["body.stem.0"] | {"input": "odd"}}), "result.json is no result"),
        (altered(test_images=float("inf")), "result.json is no result"),
        (altered(averaged=[1]), "result.json is no result"),
        (altered(averaged={"views": 2, "test_accuracy": 2, "spikes_per_image": 1}), "2 is not between 0 and 1"),
        (recorded(source=[1]), "an entry source that is not of type dict"),
        (recorded(preset=["a"]), "an entry preset that is not of type str"),
        (recorded(resumed=3), "an entry resumed that is not of type list"),
        (recorded(data={"sizes": 3}), "an entry data.sizes that is not of type dict"),
        (recorded(environment={"packages": 3}), "an entry environment.packages that is not of type dict"),
        (broken("examples.safetensors", "x"), "examples.safetensors can't be read"),
        (with_tensors(labels=torch.tensor([0, 3])), "a label is not one of 3 classes"),
        (with_tensors(pictures=torch.zeros(2, 3, 5, 4)), "pictures is torch.float32"),
        (with_tensors(rates=torch.zeros(2, 2, 3)), "rates is torch.float32 of shape"),
        (with_tensors(logits=torch.zeros(2, 3)), "contains no examples"),
        (with_tensors(rates=torch.full((2, 2, 2), torch.nan)), "a rate is not between 0 and 1"),
    ],
)
def test_a_broken_folder_is_one_sentence(spoil: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    path = make(tmp_path / "run")
    spoil(path)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        Finding.read(path)
    assert "\n" not in str(caught.value)


def test_bad_input_has_status_2_and_nothing_is_written(spikerate: Callable[..., Any], tmp_path: Path) -> None:
    good = make(tmp_path / "good")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "bench.json").write_text("{}")
    shutil.copytree(good, tmp_path / "broken")
    (tmp_path / "broken" / "result.json").write_text("[3]")
    (tmp_path / "notes.html").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for arguments, words in (
        (("good", "bench"), "bench contains no run"),
        (("nowhere",), "nowhere contains no run"),
        (("broken",), "broken/result.json contains a list"),
        (("good", "broken", "--out", "new.html"), "broken/result.json contains a list"),
        (("good", "--out", "/dev/full"), "/dev/full is a device"),
        (("good", "--out", "notes.html"), "notes.html already exists and is not a report"),
        (("good", "--out", "bench"), "bench is a folder"),
        (("good", "--out", "notes.html/page.html"), "notes.html"),
        ((), "runs"),
    ):
        done = spikerate("report", *arguments)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, (arguments, done.stderr)
        assert sorted(tmp_path.rglob("*")) == before, arguments
    assert (tmp_path / "notes.html").read_text() == "mine"


def test_a_report_may_be_written_anew_and_in_a_new_folder(tmp_path: Path) -> None:
    report, file = gather([make(tmp_path / "run")]), tmp_path / "new" / "page.html"
    write(report, file)
    check_place(file)
    write(report, file)
    assert Page(file.read_text()).text.count("Seven questions") == 1
