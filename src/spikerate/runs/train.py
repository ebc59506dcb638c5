"""The training loop."""

from __future__ import annotations

import copy
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spikerate.data import (
    DataSet,
    Part,
    Samples,
    Stream,
    epoch_batches,
    plain_batches,
    resized,
    steps_per_epoch,
    stream,
)
from spikerate.gradients.finite_difference import variant_rates
from spikerate.gradients.temperature import Search
from spikerate.losses import Terms, accuracies
from spikerate.measure import health
from spikerate.measure.evaluate import Accuracy, answers, over_time
from spikerate.measure.meter import FiringRates, Ledger, Meter
from spikerate.models import FromImages, body_of, short_path, synchronize_batch_norm
from spikerate.rules import BPTT
from spikerate.runs.average import estimate_statistics, follow
from spikerate.runs.config import Run, check_network
from spikerate.runs.laps import Laps
from spikerate.runs.record import RunFolder
from spikerate.runs.state import Row, State
from spikerate.system.dist import Ranks
from spikerate.system.environment import compiler_problem
from spikerate.system.interrupt import Interrupt, Interrupted
from spikerate.system.modes import autocast

_SAVE, _STOP = 1, 2
_ONEDNN_BLOCK = 16
"""Channels that oneDNN handles together."""
_LOOK = 100
"""Steps between checks for losses that are not finite, which synchronise with the device."""
_ESTIMATE = 2048
"""Training samples that estimate the batch-norm statistics of an averaged network."""
_FIT = 5000
"""Training images from which first layers are computed."""
_PROBE = 128
"""Images that find silent layers at the end of each epoch; the first ones of the validation set, if there is one."""


class Start(Protocol):
    """Initial weights that do not come from the seed: those of the previous round, or of another run."""

    def hand_on(self, network: nn.Module) -> None:
        """Load the weights into the network; raises `ValueError` if it is another network."""


class Watch(Protocol):
    """Receives the progress of a training."""

    def say(self, line: str) -> None:
        """Called with a message."""

    def step(self, step: int, terms: Terms) -> None:
        """Called after each step; `terms` are scalars on the device, and reading one synchronises with it."""

    def epoch(self, row: Row) -> None:
        """Called after each epoch with its line in `metrics.jsonl`."""


@dataclass(frozen=True)
class Quiet:
    """Looks on and says nothing."""

    def say(self, line: str) -> None:
        pass

    def step(self, step: int, terms: Terms) -> None:
        pass

    def epoch(self, row: Row) -> None:
        pass


def pick_device(name: str, local: int = 0) -> torch.device:
    """The device of that name; "auto" is the GPU with the index `local` if there is a GPU, else the CPU.

    Raises:
        ValueError: the name is not a device, or this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,2})?", name):
        raise ValueError(f"device is {name!r}: give auto, cpu, cuda or cuda:1")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device is {name!r}, which this machine does not have: give auto, cpu or cuda") from error
    return device


def build_network(run: Run, num_classes: int, shape: tuple[int, int, int], device: torch.device) -> nn.Module:
    """The network of a run for samples [C, H, W], with newly initialised weights, on the device."""
    return place(run.build(num_classes, shape), device)


def place(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to the device, with kernels (and so activations) in channels-last order unless that is unsafe."""
    network = network.to(device)
    if device.type == "cpu" and any(map(_unsafe_channels_last, network.modules())):
        return network
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _unsafe_channels_last(module: nn.Module) -> bool:
    """Whether oneDNN writes past its workspace in the backward pass: github.com/uxlfoundation/oneDNN, issue 6035."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels < _ONEDNN_BLOCK
    )


class Outputs(nn.Module):
    """A network run by a rule: x [T, B, ...] -> the logits [B, K] of all its outputs, those of the final head last.

    With `per_step`, the final head's logits are those of every step, [B, T, K]. With `with_rates`, the rule is a
    `FiringRates`, and the mean rates [B, L] of its L layers follow as the last item.
    """

    def __init__(
        self, network: nn.Module, forward: Callable[..., Any], per_step: bool = False, with_rates: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.run = forward
        self.per_step = per_step
        self.with_rates = with_rates

    def forward(self, x: Tensor) -> list[Tensor]:
        out, rates = self.run(self.network, x) if self.with_rates else (self.run(self.network, x), {})
        means = [torch.stack([rate.flatten(1).mean(1) for rate in rates.values()], 1)] if rates else []
        return [*out.exits, out.steps.transpose(0, 1) if self.per_step else out.rate, *means]


def forward_pass(run: Run, forward: Callable[..., Any], x: Tensor, T: int | None = None) -> Any:
    """`forward` applied to samples [B, ...] in the precision of the run, for T time steps, by default those of the run."""
    with autocast(x.device, run.precision):
        return forward(over_time(x, T or run.T))


def fit_layers(network: nn.Module, data: DataSet, batch: int = 128) -> None:
    """Compute the layers of a network that are `FromImages`, from training images spread evenly over the set.

    Raises:
        ValueError: a file is broken, or the images are not such that the layers can be computed.
    """
    layers = [module for module in network.modules() if isinstance(module, FromImages)]
    n = min(_FIT, len(data.train))
    for layer in layers:
        images = data.train[torch.arange(n) * len(data.train) // n]
        layer.fit(x for x, _ in plain_batches(data, images, batch, torch.device("cpu")))


@dataclass(frozen=True)
class _Ready:
    """The functions that run the network, compiled if the run asks for it.

    Attributes:
        forward: for training.
        look: for validation.
        rates: for finite differences.
        compiled: whether `forward` is compiled.
        begun: the batches of an epoch that have been begun before it, by its number.
        met: the T and shapes of the steps so far: at the first of each, something may be compiled.
    """

    forward: nn.Module
    look: Callable[..., Any]
    rates: Callable[..., Tensor]
    compiled: bool
    begun: dict[int, Iterator[list[Part]]] = field(default_factory=dict)
    met: set[tuple[Any, ...]] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class Trainer:
    """The training of one run on one rank, from the last checkpoint if there is one.

    Args:
        run: the settings.
        data: the data set.
        folder: the run folder; only rank 0 writes into it.
        watch: receives messages and progress.
        ranks: the processes that train together.
        stop: asks the training to end after the current step.
        save_minutes: largest time between checkpoints; there is also one after every epoch.
        start: where the initial weights come from if there is no checkpoint; None to draw them from the seed.
        network: a module of supported layers on the CPU, which is trained in place; by default a new one of `run.model`.
            The commands build the network in `run.json`, and do not read weights of another one.
    """

    run: Run
    data: DataSet
    folder: RunFolder
    watch: Watch = Quiet()
    ranks: Ranks = Ranks()
    stop: Interrupt = Interrupt()
    save_minutes: float = 10
    start: Start | None = None
    network: nn.Module | None = None

    def train(self) -> State:
        """Train to the end, and write state, metrics and best weights to the folder.

        The best epoch is chosen on the validation set; the test set is not used. A folder with a checkpoint is continued,
        and the result is bit-identical to that of a run that never stopped (same machine, threads and versions).

        Raises:
            Interrupted: `stop` asked to end; the state is saved.
            NotFinite: the loss or a gradient is not finite; the state before that step is saved.
            SaveError: the folder can't be written.
            ValueError: the checkpoint is broken, of another network, or has impossible content; or `network` does not return
                logits for such samples, or lacks the stages that the loss needs.
        """
        run, ranks = self.run, self.ranks
        device = pick_device(run.device, ranks.local)
        with _deterministic(run.deterministic):
            torch.manual_seed(run.seed)
            network = self._network(device)
            if run.sync_bn and ranks.n > 1:
                network = synchronize_batch_norm(network, ranks.total)
            # Decided by rank 0, since it may have written a checkpoint by the time the others look.
            resumed = bool(ranks.broadcast("resume" if self.folder.has_state else ""))
            if self.start and not resumed:
                self.start.hand_on(network)
            elif not resumed:
                fit_layers(network, self.data)
            average = copy.deepcopy(network) if run.optim.averages else None
            state = State(network, run.optim.build(network), average)
            if run.compile and (self.start or run.curriculum or run.resolutions):
                torch.compiler.reset()  # the graphs of several T would reach the compiler's limit
            prepare = compiler(run, device, self.watch.say)
            with_rates = run.penalty.weight > 0
            wanted = FiringRates(run.rule) if with_rates else run.rule
            rule = prepare(wanted)
            forward = ranks.wrap(Outputs(network, rule, run.loss.per_step, with_rates))
            self._begin(state, resumed)
            data = self.data.to(device) if run.data.store == "device" else self.data
            ready = _Ready(forward, prepare(BPTT()), prepare(variant_rates), rule is not wanted)
            finite = True
            while state.epoch < run.epochs:
                finite = self._epoch(state, data, device, ready, careful=not finite)
                if not finite:
                    self.folder.restore(state)
        return state

    def _network(self, device: torch.device) -> nn.Module:
        K, shape = len(self.data.classes), self.data.shape
        if self.network is None:
            return build_network(self.run, K, shape, device)
        check_network(self.network, f"the network, a {type(self.network).__name__},", K, shape)
        return place(self.run.complete(self.network, K, shape), device)

    def _begin(self, state: State, resumed: bool) -> None:
        if resumed:
            with self.ranks.barrier():
                self.folder.restore(state)
                state.check_within(self.run.epochs, steps_per_epoch(self.data.train, self.run.batch))
                if self.ranks.first:
                    self.folder.publish(state)
        else:
            self._save(state)

    def _epoch(self, state: State, data: DataSet, device: torch.device, ready: _Ready, careful: bool) -> bool:
        """Train for the rest of the epoch, and save. Returns False if a sum of loss terms is not finite.

        A term that is not finite makes the sum over the steps not finite, too, so most steps need not synchronise with the
        device. To find the step, the steps since the checkpoint are repeated with `careful`, which checks each of them.
        """
        run, ranks, network = self.run, self.ranks, state.network
        laps = Laps(state.spent)
        saved = laps.start
        if run.search is not None and state.step == 0:
            state.found = self._search(run.search, state, data, device, ready.rates)
        steps = steps_per_epoch(data.train, run.batch)
        total = run.epochs * steps
        for parts in ready.begun.pop(state.epoch, None) or self._batches(data, state.epoch, state.step, device):
            done = state.epoch * steps + state.step
            torch.manual_seed(stream(run.seed, Stream.LAYERS, state.epoch, state.step, ranks.rank))
            state.set_lr(run.optim.schedule(done, total))
            T, side, begun = run.T_at(done, total), run.side_at(done, total), time.perf_counter()
            if side is not None:
                parts = [Part(resized(part.x, side), part.labels) for part in parts]
            kind = (T, *parts[0].x.shape)
            terms = self._step(state, ready.forward, parts, careful, T)
            took, new = time.perf_counter() - begun, kind not in ready.met
            laps.step(took, new)
            if ready.compiled and new and ready.met:
                size = "" if side is None else f", {side} x {side} pixels"
                self.watch.say(f"compiled for T = {T}{size}: the step took {took:.0f} s")
            elif ready.compiled and new and done == 0:
                self.watch.say(f"compiled: the first step took {took:.0f} s; later runs can use the compiler's cache")
            ready.met.add(kind)
            if state.average is not None:
                follow(state.average, network, run.optim, done, total)
            state.totals = {name: state.totals.get(name, 0) + value for name, value in terms.items()}
            state.step += 1
            if careful and not health.all_finite(state.totals):
                raise health.NotFinite(
                    f"epoch {state.epoch + 1} step {state.step}: the sum of a loss term is not finite, although the term "
                    "is; a smaller --optim.lr may help"
                )
            self.watch.step(done + 1, terms)
            wish = ranks.all_max(self._wish(saved))
            if (wish or state.step % _LOOK == 0 or state.step == steps) and not health.all_finite(state.totals):
                return False
            if wish and state.step < steps:
                state.spent = laps.so_far()
                self._save(state)
                saved = time.perf_counter()
            if wish == _STOP and state.step < steps:
                raise Interrupted(self.stop.signal)
        trained = time.perf_counter() - laps.start
        row: Row = {"epoch": state.epoch + 1, "lr": run.optim.lr_at(state.epoch * steps, total)}
        row |= {name: float(value) / steps for name, value in state.totals.items()} | state.found
        if state.epoch + 1 < run.epochs:  # files are decoded during the evaluation
            ready.begun[state.epoch + 1] = self._batches(data, state.epoch + 1, 0, device)
        if len(data.validation) or state.average is not None:
            ranks.broadcast_buffers(network)
        if state.average is not None:
            batches = epoch_batches(data, run.batch, run.data.augment, run.seed, state.epoch, device=device)
            few = (over_time(part.x, run.T) for (part,) in itertools.islice(batches, -(-_ESTIMATE // run.batch)))
            estimate_statistics(state.average, network, few, run.precision)
            ranks.broadcast_buffers(state.average)
        # The firing rates are those of the network that is trained, on the first images; several ranks share the validation.
        ledger = Ledger() if len(data.validation) and ranks.n == 1 and state.average is None else None
        if len(data.validation):
            row["validation"] = self._validation(state.trained, data, device, ready.look, ledger).value
        images = (data.validation if len(data.validation) else data.train)[:_PROBE]
        row |= self._firing(state, ledger or self._probe(state, images, data, device), len(images))
        row |= {"T": T} if run.curriculum else {}
        row |= {"side": side or data.shape[1]} if run.resolutions else {}
        row |= laps.so_far(trained)
        state.rows.append(row)
        state.epoch, state.step, state.totals, state.found, state.spent = state.epoch + 1, 0, {}, {}, {}
        self._save(state)
        self.watch.epoch(row)
        if ranks.all_max(self._wish(saved)) == _STOP and state.epoch < run.epochs:
            raise Interrupted(self.stop.signal)
        return True

    def _batches(self, data: DataSet, epoch: int, start: int, device: torch.device) -> Iterator[list[Part]]:
        run = self.run
        share = self.ranks.share
        return epoch_batches(data, run.batch, run.data.augment, run.seed, epoch, share, run.accumulate, start, device)

    def _step(self, state: State, forward: nn.Module, parts: list[Part], careful: bool, T: int | None = None) -> Terms:
        """A step for T time steps, by default those of the run."""
        run, ranks, network = self.run, self.ranks, state.network
        before = [buffer.clone() for buffer in network.buffers()] if careful else []
        size = sum(len(part.labels) for part in parts)
        terms: Terms = {}
        for part in parts:
            weight = len(part.labels) / size
            with ranks.no_sync(forward, part is not parts[-1]):
                outputs = self._run(forward, part.x, T)
                outputs = [ranks.gather_shares(logits, len(part.labels)) for logits in outputs]
                rates = outputs.pop() if run.penalty.weight > 0 else None
                part_terms = run.loss(outputs, part.labels)
                if rates is not None:
                    penalty = run.penalty(dict(enumerate(rates.unbind(1))))["loss"]
                    part_terms |= {"loss": part_terms["loss"] + penalty, "penalty": penalty}
                # Times n, since gradients are averaged over the ranks, and each rank's go to its own images only.
                (part_terms["loss"] * (run.optim.scale(T or run.T) * weight * ranks.n)).backward()
            with torch.no_grad():
                named = part_terms | accuracies(outputs, part.labels)
                terms = {name: terms.get(name, 0) + value.detach() * weight for name, value in named.items()}
        norm = {"gradient_norm": health.gradient_norm(network)}
        if careful and not health.all_finite(terms | norm):
            self._give_up(state, parts, before, terms, T)
        if run.optim.clip is not None:
            nn.utils.clip_grads_with_norm_(network.parameters(), run.optim.clip, norm["gradient_norm"])
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        network.zero_grad()  # again, since an optimiser's parameters may be views of the network's, as Muon's are
        return terms | norm

    def _run(self, forward: Callable[..., Any], x: Tensor, T: int | None = None) -> Any:
        return forward_pass(self.run, forward, x, T)

    def _give_up(self, state: State, parts: list[Part], before: list[Tensor], terms: Terms, T: int | None) -> None:
        network, step = state.network, f"epoch-{state.epoch + 1}-step-{state.step + 1}"
        names = health.names_not_finite(terms)

        def again() -> None:
            for part in parts:
                self._run(lambda x: self.run.rule(network, x), part.x, T)

        found = self.ranks.first_message(health.where_not_finite(network, again, terms))
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), before, strict=True):
                buffer.copy_(value)
        kept = ""
        if self.ranks.first:
            kept = f"; the state before the step is in {self.folder.save_state(f'before-{step}', state)}"
        raise health.NotFinite(
            f"{step.replace('-', ' ')}: {'the loss' if names else 'a gradient'} is not finite"
            + (f" (terms: {', '.join(names)})" if names else "")
            + (f"; it appears first {found}" if found else "; when the step was repeated, all layers were finite")
            + f"{kept}. A smaller --optim.lr or --precision fp32 may help"
        )

    def _search(
        self, search: Search, state: State, data: DataSet, device: torch.device, rates: Callable[..., Tensor]
    ) -> Row:
        """Set the temperatures for the coming epoch by its first samples, which are the same on all ranks."""
        run, start = self.run, time.perf_counter()
        body = body_of(state.network)
        (part,) = next(epoch_batches(data, search.samples, run.data.augment, run.seed, state.epoch, device=device))
        seed = stream(run.seed, Stream.SEARCH, state.epoch)
        torch.manual_seed(seed)
        steps = steps_per_epoch(data.train, run.batch)
        T = run.T_at(state.epoch * steps, run.epochs * steps)
        found: Row = self._run(lambda x: search(body, run.rule, x, part.labels, seed, self.ranks, rates), part.x, T)
        return found | {"search_seconds": round(time.perf_counter() - start, 3)}

    def _validation(
        self,
        network: nn.Module,
        data: DataSet,
        device: torch.device,
        look: Callable[..., Any],
        ledger: Ledger | None = None,
    ) -> Accuracy:
        """The accuracy of a network; the spikes that the first images make are noted in the ledger, if there is one."""
        run, own = self.run, data.validation[self.ranks.share(len(data.validation))]
        ways = [(own, look, run.batch)]
        if ledger is not None:
            ways = [(own[:_PROBE], Meter(ledger), _PROBE), (own[_PROBE:], look, run.batch)]
        right = n = 0
        for samples, rule, batch in ways:
            if len(samples) or ledger is None:
                part = answers(network, data, samples, run.T, run.precision, rule, batch, device).at_step[-1]
                right, n = right + part.right, n + part.n
        right, n = self.ranks.total(torch.tensor([right, n], device=device)).tolist()
        return Accuracy(right, n)

    def _probe(self, state: State, images: Samples, data: DataSet, device: torch.device) -> Ledger:
        """The spikes that a few images make."""
        x, _ = next(plain_batches(data, images, _PROBE, device))
        return self._run(lambda x: health.firing(state.network, x), x)

    def _firing(self, state: State, ledger: Ledger, images: int) -> Row:
        """The firing rate of all neurons and of each layer on so many images; says which layers are stuck, or no longer."""
        rates = ledger.rates(state.network)
        now = health.stuck(rates, self.run.spiking)
        before = health.stuck(state.rows[-1].get("firing_rates", {}), self.run.spiking) if state.rows else {}
        for layer, rate in rates.items():
            if layer in now and layer not in before:
                self.watch.say(f"warning: layer {short_path(layer)} {now[layer]} on {images} images: it can't learn")
            elif layer in before and layer not in now:
                self.watch.say(f"layer {short_path(layer)} can learn again: its firing rate is {rate:.2g}")
        return {"firing_rate": ledger.mean_rate(), "firing_rates": rates}

    def _wish(self, saved: float) -> int:
        """What this rank asks for after a step: to go on, save or stop; the largest request of all ranks counts."""
        if self.stop.asked:
            return _STOP
        return _SAVE if self.ranks.first and time.perf_counter() - saved > 60 * self.save_minutes else 0

    def _save(self, state: State) -> None:
        with self.ranks.barrier():
            if self.ranks.first:
                self.folder.save(state)


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # otherwise the order of cuBLAS's sums may vary
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def compiler(
    run: Run, device: torch.device, say: Callable[[str], None]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A function that prepares a rule: `torch.compile` if the run asks for it and it works here, else the identity."""

    def eager(rule: Callable[..., Any]) -> Callable[..., Any]:
        return rule

    def compiled(rule: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(rule, fullgraph=True, dynamic=False)

    if not run.compile:
        return eager
    problem = compiler_problem(device)
    if problem:
        say(f"not compiled, since {problem}: the steps take longer, but the result is the same")
        return eager
    say("compiling the network at the first step, which takes a minute or two")
    return compiled
