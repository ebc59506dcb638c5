"""Presets: the published experiments as named runs, with reference, results and differences from the paper."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from spikerate.data import Augment, Data
from spikerate.gradients.temperature import Search
from spikerate.losses import TET, CrossEntropy, Loss, SelfDistillation
from spikerate.rules import BPTT, OTTT, SLTT, RateBP, Rule
from spikerate.runs.config import IntegerNeuron, Model, Neuron, Phase, Rectified, Round, Run
from spikerate.runs.optim import SGD, AdamW, Muon
from spikerate.runs.schedule import Cosine, OneCycle
from spikerate.surrogate import Dspike, Sigmoid
from spikerate.system.codec import path_of

RATE = "Rate-based backpropagation: Yu, Liu, Wang, Li, Wang; NeurIPS 2024; arXiv 2410.11488"
ESD = "Enhanced self-distillation: Zhao, Yu, Yu, Liu, Wang; NeurIPS 2025; arXiv 2510.06254"
DSPIKE = "Dspike, the adaptive surrogate: Li, Guo, Zhang, Deng, Hai, Gu; NeurIPS 2021"
RIVALS = "What the papers compare with: per-step loss (TET), online training (OTTT, SLTT) and the ANN"
SMALL = "For a laptop, on built-in and other small data sets"
TRANSFORMERS = "Spiking transformers: Zhou et al., ICLR 2023; Yao et al., NeurIPS 2023; Zhou et al., NeurIPS 2024"
SOUNDS = "Sounds as spikes: Cramer, Stradmann, Schemmel, Zenke; IEEE TNNLS 2020; arXiv 1910.07407"
MAX = "Max-pooling against the low pass of spiking neurons: Fang et al.; NeurIPS 2025; arXiv 2505.18608"
FAST = "Speedruns: CIFAR-10 in minutes, for the table of records (docs/speedrun.md)"
OWN = "Your own data"


@dataclass(frozen=True)
class Preset:
    """The settings of a run with their description.

    Attributes:
        run: the settings.
        paper: the reference, by which presets are grouped.
        title: data and network.
        method: how it is trained.
        figures: the authors' result, how it was selected, and our result.
        differs: how the settings differ from the paper's.
    """

    run: Run
    paper: str
    title: str
    method: str
    figures: str
    differs: str

    @property
    def text(self) -> str:
        """The whole description in sentences."""
        return " ".join(part for part in (f"{self.headline}.", f"{self.paper}.", self.differs, self.figures) if part)

    @property
    def headline(self) -> str:
        """A description in one line."""
        steps = [own.times for own in self.run.rounds]
        return f"{self.title}, {' -> '.join(steps)}: {self.method}"


def headline(name: str, run: Run) -> str:
    """A run of a preset in one line, by its own settings; "" if there is no such preset, or only one of both is an ANN."""
    its = PRESETS.get(name)
    if its is None or its.run.spiking != run.spiking:
        return ""
    same = (its.run.data.name, its.run.model.name) == (run.data.name, run.model.name)
    data = path_of(run.data.reader) if run.data.name == "own" else run.data.name
    title = its.title if same else f"{data}, {run.model.name}"
    method = its.method if (its.run.rule, its.run.loss) == (run.rule, run.loss) else f"{its.method}, changed"
    return replace(its, run=run, title=title, method=method).headline


METHODS: dict[str, tuple[str, Rule, Loss]] = {
    "esd": ("ESD", RateBP(), SelfDistillation(alpha=1.0, beta=0.3, tau=3.0)),
    "rate": ("RateBP, rate_M", RateBP(), CrossEntropy()),
    "rate-s": ("RateBP, rate_S", RateBP(chunk=1), CrossEntropy()),
    "bptt": ("BPTT", BPTT(), CrossEntropy()),
    "tet": ("BPTT, TET", BPTT(), TET()),
    "ottt": ("OTTT", OTTT(chunk=1), TET()),
    "sltt": ("SLTT", SLTT(chunk=1), TET()),
    "ann": ("ReLU, backpropagation", BPTT(), CrossEntropy()),
}
"""Suffix of a preset's name -> the method's name, rule and loss."""

_CIFAR = Run(
    data=Data("cifar10", validation=5000, augment=Augment(crop=4, flip=True, autoaugment="cifar10", cutout=16)),
    optim=SGD(lr=0.1, weight_decay=5e-4, loss_scale="1/T"),
    T=4,
    epochs=300,
    batch=128,
)
_IMAGENET = Run(
    data=Data("imagenet", validation=10_000, augment=Augment(resized_crop=True, flip=True)),
    model=Model("preact-resnet34", 64, "7x7", residual_branches=True),
    optim=SGD(lr=0.2, weight_decay=2e-5, loss_scale="1/T"),
    T=4,
    epochs=100,
    batch=512,
)
_DVS = Run(
    data=Data("cifar10-dvs", validation=500, test=1000, size=48, store="host", augment=Augment(flip=True, roll=5)),
    model=Model("vggsnn", 64),
    optim=SGD(lr=0.1, weight_decay=5e-4, loss_scale="1/T"),
    T=10,
    epochs=300,
    batch=128,
)
_SMALL = Run(
    data=Data("digits"),
    model=Model("resnet18", 16),
    optim=SGD(lr=0.1, weight_decay=5e-4, loss_scale="1"),
    T=4,
    epochs=20,
    batch=32,
)
_IMAGES = replace(
    _SMALL,
    data=Data("images", augment=Augment(resized_crop=True, flip=True)),
    model=Model("preact-resnet18", 64, "7x7"),
    epochs=30,
    batch=64,
    precision="bf16",
)

_CHOSEN = "the epoch is chosen on a validation set, the authors chose it on the test set; --data.validation 0 trains on all"
_GROUPS = (
    "AutoAugment, and the choice of one augmentation for recordings, are drawn for groups of 8 samples; Cutout is black; an "
    "incomplete last batch of an epoch is dropped."
)
_NONE = "Authors' result: not known to us. Ours: none yet, it needs a GPU."
_LOG = "Authors' result: {} at the best epoch, chosen on the test set, {} at the last, in their log, one seed. Ours: none."
_LOG_OF_CIFAR100, _LOG_OF_IMAGENET = _LOG.format("80.20", "79.54"), _LOG.format("70.70", "70.49")


def by_method(run: Run, method: str) -> Run:
    """The run with a method of `METHODS`. The papers divide the loss by T for the rate-based methods, but not for BPTT."""
    _, rule, loss = METHODS[method]
    run = replace(run, T=1, curriculum=(), neuron=Rectified()) if method == "ann" else run
    optim = run.optim if not rule.per_step else replace(run.optim, loss_scale="1")
    return replace(run, rule=rule, loss=loss, optim=optim)


def _preset(run: Run, method: str, paper: str, title: str, figures: str = _NONE, differs: str = "") -> Preset:
    return Preset(by_method(run, method), paper, title, METHODS[method][0], figures, differs)


def _cifar() -> Iterator[tuple[str, Preset]]:
    """CIFAR-10 and -100: ResNet-18 and -19 by every method, VGG and VGGSNN by those of the rate-based paper."""
    networks = {
        "": ("ResNet-18", Model("resnet18", 64)),
        "-resnet19": ("ResNet-19", Model("resnet19", 128)),
        "-vgg11": ("VGG-11", Model("vgg11", 64)),
        "-vgg13": ("VGG-13", Model("vgg13", 64)),
        "-vggsnn": ("VGGSNN", Model("vggsnn", 64)),
    }
    for base, words in ((_CIFAR, "CIFAR-10"), (replace(_CIFAR, data=replace(_CIFAR.data, name="cifar100")), "CIFAR-100")):
        for suffix, (network, model) in networks.items():
            name, title = f"{base.data.name}{suffix}", f"{words}, {network}"
            run = replace(base, model=model)
            for method in ("rate", "rate-s", "bptt"):
                differs = f"The paper has T = 2, 4 and 6 (--T). Differs: {_CHOSEN}. {_GROUPS}"
                yield f"{name}-{method}", _preset(run, method, RATE, title, differs=differs)
            if suffix in ("", "-resnet19"):
                figures = _LOG_OF_CIFAR100 if name == "cifar100" else _NONE
                yield f"{name}-esd", _preset(replace(run, T=6), "esd", ESD, title, figures, f"Differs: {_CHOSEN}. {_GROUPS}")


def _imagenet() -> Iterator[tuple[str, Preset]]:
    differs = f"Differs: {_CHOSEN}."
    for suffix, network, model in (
        ("", "PreAct-ResNet-34", _IMAGENET.model),
        ("-sew", "SEW-ResNet-34", Model("sew-resnet34", 64, "7x7")),
    ):
        for method in ("rate", "rate-s", "bptt"):
            run = replace(_IMAGENET, model=model)
            yield f"imagenet{suffix}-{method}", _preset(run, method, RATE, f"ImageNet, {network}", differs=differs)
    esd = _preset(_IMAGENET, "esd", ESD, "ImageNet, PreAct-ResNet-34", _LOG_OF_IMAGENET, differs)
    loss = SelfDistillation(alpha=0.7, beta=0.3, tau=3.0, final_alpha=1.0)
    yield "imagenet-esd", replace(esd, run=replace(esd.run, loss=loss))


def _cifar10_dvs() -> Iterator[tuple[str, Preset]]:
    title = "CIFAR10-DVS, VGGSNN"
    differs = f"The 9,000 / 1,000 split is drawn at random; the authors' split is not known. Differs: {_CHOSEN}. {_GROUPS}"
    for method in ("rate", "rate-s", "bptt"):
        yield f"cifar10-dvs-{method}", _preset(_DVS, method, RATE, title, differs=differs)
    augment = Augment(flip=True, roll=5, rotation=30.0, cutout=16, one_of=True)
    run = replace(_DVS, data=replace(_DVS.data, augment=augment), batch=32)
    esd = _preset(run, "esd", ESD, title, differs=f"{differs} The network is our choice.")
    yield "cifar10-dvs-esd", replace(esd, run=replace(esd.run, loss=SelfDistillation(alpha=1.0, beta=0.1, tau=3.0)))


def _rivals() -> Iterator[tuple[str, Preset]]:
    differs = "Differs: the settings are those of cifar10-bptt, so that only the method differs."
    for method in ("tet", "ottt", "sltt", "ann"):
        yield f"cifar10-{method}", _preset(_CIFAR, method, RIVALS, "CIFAR-10, ResNet-18", differs=differs)
        yield f"digits-{method}", _preset(_SMALL, method, RIVALS, "Digits, small ResNet-18", "Ours: none yet.")


_ROUNDS = (
    "The ANN's epochs, the batch size, the neuron (that of the co-authors' later code; the clip range goes from 0 to twice "
    "its threshold) and 32 samples for the search are our choices; each round starts with the previous temperature."
)
_TITLES = {"": "BPTT, adaptive Dspike", "-rate": "RateBP, adaptive Dspike", "-esd": "ESD, adaptive Dspike"}


def _dspike() -> Iterator[tuple[str, Preset]]:
    """ANN start, then time inheritance from T = 6 to 2; and the adaptive temperature with RateBP and ESD."""
    rounds = (Round(None, 300, 0.1), Round(6, 300, 0.01), *(Round(T, 50, 0.004) for T in (5, 4, 3)))
    base = replace(
        _CIFAR,
        neuron=Neuron(decay=0.25, v_reset=0.0, surrogate=Dspike(1.0, width=2.0)),
        search=Search(),
        optim=SGD(lr=0.004, weight_decay=1e-4),
        before=rounds,
        T=2,
        epochs=50,
    )
    image = (Round(None, 100, 0.1), Round(6, 100, 0.01), *rounds[2:])
    large = replace(base, data=_IMAGENET.data, before=image)
    event = replace(
        base, data=_DVS.data, before=(Round(None, 300, 0.1),), T=10, epochs=300, optim=SGD(0.01, weight_decay=1e-4)
    )
    runs = {
        "cifar10": ("CIFAR-10, ResNet-18", "93.66 % at T = 4, 94.25 % at T = 6", base),
        "cifar100": (
            "CIFAR-100, ResNet-18",
            "73.35 % at T = 4, 74.24 % at T = 6",
            replace(base, data=replace(base.data, name="cifar100")),
        ),
        "cifar10-dvs": ("CIFAR10-DVS, ResNet-18", "75.4 % at T = 10", event),
        "imagenet-vgg16": ("ImageNet, VGG-16", "71.24 %", replace(large, model=Model("vgg16", 64))),
        "imagenet-resnet34": ("ImageNet, ResNet-34", "not known to us", replace(large, model=Model("resnet34", 64, "7x7"))),
    }
    for name, (title, figure, run) in runs.items():
        figures = f"Authors' result: {figure}, as printed in later papers. Ours: none yet, it needs a GPU."
        for suffix, method in _TITLES.items() if name == "cifar10" else [("", _TITLES[""])]:
            yield (
                f"dspike-{name}{suffix}",
                _adaptive(run, suffix, DSPIKE, title, method, figures, f"Differs: {_CHOSEN}. {_ROUNDS}"),
            )


def _adaptive(run: Run, suffix: str, paper: str, title: str, method: str, figures: str, differs: str) -> Preset:
    """The run by BPTT, or by the method of that suffix, with the same surrogate."""
    made = _preset(run, suffix.removeprefix("-") or "bptt", paper, title, figures, differs)
    return replace(made, method=method)


_SETTLED = "Batch, epochs and the lack of augmentation were chosen on the validation images."
_ON_JPEG = "(mean of 2 seeds, JPEG copies), half an hour on one core; docs/results.md says why ESD gains nothing."
_OURS = {
    "digits-esd": f"{_SETTLED} Ours: 97.28 % (5 seeds), 45 s a run on 2 cores of an AMD EPYC.",
    "digits-esd-hard": "The settings are those of digits-esd. Ours: 97.22 % (1 seed), a minute on one core of an AMD EPYC.",
    "digits-rate": f"{_SETTLED} Ours: 96.50 % (5 seeds), 33 s a run on one core of an AMD EPYC.",
    "digits-bptt": f"{_SETTLED} Ours: 96.72 % (5 seeds), 38 s a run on one core of an AMD EPYC.",
    "cifar10-small-esd": f"Ours: 74.94 % {_ON_JPEG}",
    "cifar10-small-rate": f"Ours: 75.62 % {_ON_JPEG}",
    "cifar10-small-bptt": f"Ours: 74.93 % {_ON_JPEG}",
}


def _small() -> Iterator[tuple[str, Preset]]:
    """Our own settings, the same for all methods; the loss is never divided by T."""
    simple = Augment(crop=4, flip=True)
    fast = replace(_SMALL, epochs=10, batch=64, precision="bf16", compile=True)
    small = "small ResNet-18"
    runs = {
        "digits": (SMALL, f"Digits, {small}", _SMALL),
        "digits-dvs": (
            SMALL,
            f"Digits recorded by a simulated event camera, {small}",
            replace(_SMALL, data=Data("digits-dvs"), T=6),
        ),
        "cifar10-small": (SMALL, f"CIFAR-10, {small}", replace(fast, data=Data("cifar10", validation=5000, augment=simple))),
        "mnist": (SMALL, f"MNIST, {small}", replace(fast, data=Data("mnist", validation=5000))),
        "fashion-mnist": (
            SMALL,
            f"Fashion-MNIST, {small}",
            replace(fast, data=Data("fashion-mnist", validation=5000, augment=simple)),
        ),
        "n-mnist": (SMALL, f"N-MNIST, {small}", replace(_SMALL, data=Data("n-mnist", validation=100), T=10)),
        "dvs128-gesture": (
            SMALL,
            "DVS128 Gesture, VGGSNN",
            replace(_DVS, data=Data("dvs128-gesture", validation=100, size=48, augment=Augment(roll=5)), T=16, batch=32),
        ),
        "images": (OWN, "Class folders of images, PreAct-ResNet-18", _IMAGES),
        "events": (
            OWN,
            "Class folders of recordings (.npz with t, x, y, p), VGGSNN",
            replace(_DVS, data=Data("events", sensor=(128, 128), size=48), batch=32, epochs=100),
        ),
    }
    for name, (group, title, run) in runs.items():
        for method in ("esd", "rate", "bptt", *(["ann"] if name == "cifar10-small" else [])):
            figures = _OURS.get(f"{name}-{method}", "Ours: none yet." if group == SMALL else "")
            yield f"{name}-{method}", _preset(run, method, group, title, figures)
        if name == "digits":
            hard = replace(run, neuron=Neuron(v_reset=0.0))
            made = _preset(hard, "esd", group, title, _OURS["digits-esd-hard"])
            yield "digits-esd-hard", replace(made, method="ESD, hard reset (NIR has no other)")
        if name in ("digits", "cifar10-small"):
            adaptive = replace(run, neuron=Neuron(surrogate=Dspike(1.0, width=2.0)), search=Search(), T=2)
            for suffix, method in _TITLES.items():
                yield f"{name}-dspike{suffix}", _adaptive(adaptive, suffix, group, title, method, "Ours: none yet.", "")


_FAST = Run(
    data=Data("cifar10", validation=5000, augment=Augment(crop=2, flip=True)),
    model=Model("airbench", 64, "whitening"),
    neuron=Neuron(decay=0.5),
    loss=CrossEntropy(smoothing=0.1),
    optim=Muon(lr=0.1, weight_decay=0.0, adamw_lr=2e-3, bias_lr=8.0, schedule=OneCycle(0.25)),
    T=2,
    curriculum=(Phase(1, 0.5),),
    epochs=30,
    batch=250,
    precision="bf16",
    compile=True,
)
_WHOLE = replace(_FAST, neuron=IntegerNeuron(levels=4), T=1, curriculum=())
_FASTS = {
    "cifar10-fast-rate": ("an hour on two cores", "rate", _FAST),
    "cifar10-fast-15min-rate": ("15 minutes on two cores", "rate", replace(_FAST, epochs=8)),
    "cifar10-fast-ilif": ("an hour on two cores", "rate", replace(_WHOLE, epochs=40)),
    "cifar10-fast-15min-ilif": ("15 minutes on two cores", "rate", replace(_WHOLE, epochs=10)),
    "cifar10-fast-ann": ("the ANN of the same shape and recipe", "ann", _FAST),
    "cifar10-fast-bptt": ("the same recipe by BPTT", "bptt", _FAST),
    "cifar10-fast-esd": ("the same recipe with self-distillation", "esd", _FAST),
}
"""Name -> what it is for, method, settings. To change a recipe, edit `_FAST`; the twins follow."""


def _fast() -> Iterator[tuple[str, Preset]]:
    """Recipes for speed."""
    for name, (purpose, method, run) in _FASTS.items():
        yield name, _recipe(run, method, FAST, f"CIFAR-10, {run.model.name}, {purpose}")


def _recipe(
    run: Run, method: str, paper: str, title: str, figures: str = "Ours: none yet; not tuned.", differs: str = ""
) -> Preset:
    """The run by a method, whose loss has the label smoothing and the factor of the run's."""
    made = _preset(run, method, paper, title, figures, differs)
    loss, recipe = made.run.loss, run.loss
    if isinstance(loss, CrossEntropy | SelfDistillation) and isinstance(recipe, CrossEntropy):
        loss = replace(loss, smoothing=recipe.smoothing, scale=recipe.scale)
    return replace(made, run=replace(made.run, loss=loss))


_TRANSFORMER = replace(
    _CIFAR,
    # tau = 2 with decayed input, which is half of it: so threshold and surrogate are twice as wide here.
    neuron=Neuron(decay=0.5, threshold=2.0, v_reset=0.0, surrogate=Sigmoid(2.0)),
    optim=AdamW(lr=5e-4, weight_decay=0.06, loss_scale="1/T"),
)
_SMALL_TRANSFORMER = replace(_FAST, optim=AdamW(lr=2e-3, weight_decay=0.05, schedule=OneCycle(0.25)), epochs=8)
_TRANSFORMERS = {
    "spikformer": ("Spikformer", Model("spikformer", 48, depth=4, heads=12), Model("spikformer", 12, depth=2)),
    "sdt": ("spike-driven transformer", Model("sdt", 64, depth=2), Model("sdt", 12, depth=2)),
    "qkformer": ("QKFormer", Model("qkformer", 48, depth=4), Model("qkformer", 12, depth=3)),
}
"""Name -> title, and the network in the form for CIFAR and in a small one."""
_RERUNS = {"spikformer": "95.12 %", "qkformer": "96.24 %"}
_TRANSFORMER_DIFFERS = (
    f"The sizes and the neuron are the paper's; optimiser, epochs and augmentation are our choices. {_GROUPS}"
)


def _transformers() -> Iterator[tuple[str, Preset]]:
    """On CIFAR-10, in the papers' sizes and in small ones, with the data, neuron and steps of the speedruns."""
    for name, (title, model, small) in _TRANSFORMERS.items():
        figures = f"An independent rerun (STEP), by BPTT: {_RERUNS[name]}. Ours: none yet." if name in _RERUNS else _NONE
        for method in ("rate", "bptt"):
            run = replace(_TRANSFORMER, model=model)
            made = _preset(run, method, TRANSFORMERS, f"CIFAR-10, {title}", figures, _TRANSFORMER_DIFFERS)
            yield f"cifar10-{name}-{method}", made
        for method in ("rate", "esd", "bptt"):
            made = _recipe(replace(_SMALL_TRANSFORMER, model=small), method, TRANSFORMERS, f"CIFAR-10, small {title}")
            yield f"cifar10-{name}-small-{method}", made


_MAX = replace(
    _TRANSFORMER,
    data=replace(_CIFAR.data, augment=Augment(crop=4, flip=True, randaugment=(3, 5), mixup=1.0, cutmix=1.0)),
    model=Model("max-resnet18", 64),
    loss=CrossEntropy(smoothing=0.1),
    optim=AdamW(lr=1e-3, weight_decay=0.05, loss_scale="1/T", schedule=Cosine(warmup=0.05)),
    epochs=400,
)
_MAX_DIFFERS = (
    "The paper's: max-pooling in a ResNet-18, T = 4, 400 epochs, AdamW with a warm-up, Mixup, CutMix, RandAugment and label "
    "smoothing. Ours: their numbers (those of Mixup, CutMix and RandAugment are from the papers of these, the warm-up takes "
    "20 epochs), learning rate, weight decay, batch, crop, the neuron, which is that of the transformers, and the places of "
    "the pools in the network. Differs: the epoch is chosen on a validation set, and --data.validation 0 trains on all; how "
    "theirs was chosen is not known to us. RandAugment is drawn for groups of 8 samples; an incomplete last batch of an "
    "epoch is dropped."
)


def _max_resnet() -> Iterator[tuple[str, Preset]]:
    """The recipe of Max-ResNet-18: by backpropagation through time, as published, by rates, and with self-distillation."""
    more = replace(_MAX, data=replace(_MAX.data, name="cifar100"))
    for run, words, published in ((_MAX, "CIFAR-10", "97.17"), (more, "CIFAR-100", "83.06")):
        for suffix, method in (("", "bptt"), ("-rate", "rate"), ("-esd", "esd")):
            figures = f"Authors' result: {published} %. Ours: none yet, it needs a GPU."
            made = _recipe(run, method, MAX, f"{words}, Max-ResNet-18", figures, _MAX_DIFFERS)
            yield f"{run.data.name}-max-resnet18{suffix}", made


_SOUNDS = Run(
    data=Data("shd", validation=800, frames="time"),
    model=Model("mlp", 256),
    neuron=Neuron(decay=0.9),
    rule=BPTT(),
    optim=AdamW(lr=1e-3, weight_decay=0.01),
    T=100,
    epochs=50,
    batch=128,
)
_SOUNDS_DIFFER = (
    "Differs: network, batch norm, neuron, optimiser and frames are our choices, not tuned; no file of the data was at hand."
)
_TIMING = "Timing carries information that no rate has, so BPTT should be better; this preset measures by how much."


def _sounds() -> Iterator[tuple[str, Preset]]:
    """Spoken words: by BPTT with and without spikes that come back, and by RateBP, which loses what timing tells."""
    sets = {
        "shd": ("Spiking Heidelberg Digits", _SOUNDS.data),
        "ssc": ("Spiking Speech Commands", Data("ssc", frames="time", store="host")),
    }
    for name, (words, data) in sets.items():
        run = replace(_SOUNDS, data=data)
        looped = replace(run, model=Model("recurrent", 256))
        title, figures = f"{words}, two hidden layers", "Ours: none yet."
        yield f"{name}-mlp-bptt", _preset(run, "bptt", SOUNDS, title, figures, _SOUNDS_DIFFER)
        yield f"{name}-mlp-rate", _preset(run, "rate", SOUNDS, title, figures, f"{_SOUNDS_DIFFER} {_TIMING}")
        title = f"{words}, a recurrent layer"
        yield f"{name}-recurrent-bptt", _preset(looped, "bptt", SOUNDS, title, figures, _SOUNDS_DIFFER)


PRESETS: dict[str, Preset] = {
    name: preset
    for family in (
        _small,
        _fast,
        _max_resnet,
        _transformers,
        _sounds,
        _cifar,
        _imagenet,
        _cifar10_dvs,
        _dspike,
        _rivals,
    )
    for name, preset in family()
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: the name is unknown; the message suggests similar ones.
    """
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, 3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "spikerate list shows them"
    raise ValueError(f"there is no preset {name!r}: {hint}")
