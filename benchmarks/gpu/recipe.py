"""Piece 5: train on CIFAR-10 within so many seconds, by rate-based backpropagation; the process of one recipe.

Its questions: first the recipe, which is built, compiled and warmed up; then {"train": seconds}, which takes as many whole
epochs as fit and answers with the validation accuracy; then {"test": true}, to be asked once, of the recipe that was chosen.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from talk import answer_all
from torch import Tensor, nn

from spikerate import BPTT, LIF, RateBP, Staged, resnet18
from spikerate.data import Data, Samples, load, plain_batches

PAD = 4


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is trained, and how.

    Attributes:
        widths: channels of the three blocks; of ResNet-18, of its first stage.
        depth: convolutions in a block; the third has a shortcut around it.
        lr: at the peak of the triangle.
        cutout: side of the square that is left out of each training image.
        subset: training images; None for all.
    """

    name: str
    data: str
    widths: tuple[int, ...]
    depth: int = 2
    T: int = 2
    decay: float = 0.5
    batch: int = 512
    lr: float = 0.4
    weight_decay: float = 5e-4
    smoothing: float = 0.1
    cutout: int = 8
    warm_up: float = 0.2
    device: str = "cuda"
    compile: bool = True
    subset: int | None = None


class Shortcut(nn.Module):
    """Adds its input to what the layers make of it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Any) -> Any:
        return x + self.layers(x)


def network(recipe: Recipe) -> nn.Module:
    """Three blocks of [convolution, max-pool, batch norm, neurons, (convolution, batch norm, neurons)...], or ResNet-18."""

    def neurons() -> LIF:
        return LIF(recipe.decay)

    if len(recipe.widths) == 1:
        return resnet18(10, 3, recipe.widths[0], neurons)

    def layer(i: int, o: int, pool: bool = False) -> list[nn.Module]:
        pooled: list[nn.Module] = [nn.MaxPool2d(2)] if pool else []
        return [nn.Conv2d(i, o, 3, padding=1, bias=False), *pooled, nn.BatchNorm2d(o), neurons()]

    stages: dict[str, nn.Module] = {}
    before = 32
    for k, after in enumerate(recipe.widths):
        layers = layer(before, after, pool=True) + layer(after, after)
        if recipe.depth > 2:
            layers.append(Shortcut(*layer(after, after)))
        stages[f"block{k + 1}"] = nn.Sequential(*layers)
        before = after
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))
    return Staged(nn.Sequential(*layer(3, 32)), stages, head)


class Images:
    """Images [N, 3, 32, 32] and labels [N] on a device, from which random batches are cut.

    An image is flipped in every other pass over the data, and moved by up to 4 pixels, with what is outside mirrored.
    """

    def __init__(self, x: Tensor, y: Tensor, recipe: Recipe) -> None:
        self.y, self.recipe = y, recipe
        self.side = x.shape[-1]
        self.padded = F.pad(x, [PAD] * 4, mode="reflect").to(memory_format=torch.channels_last)
        self.generator = torch.Generator(x.device).manual_seed(1)
        self.first_flip = self._random(2, len(y)).bool()

    def _random(self, below: int, n: int) -> Tensor:
        return torch.randint(below, (n,), generator=self.generator, device=self.y.device)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Whole batches only."""
        order = torch.randperm(len(self.y), generator=self.generator, device=self.y.device)
        for index in order.split(self.recipe.batch)[: len(order) // self.recipe.batch]:
            yield self._cut(index, self.first_flip[index] ^ bool(number % 2)), self.y[index]

    def _cut(self, index: Tensor, flip: Tensor) -> Tensor:
        places = torch.arange(self.side, device=index.device)
        rows = self._random(2 * PAD + 1, len(index))[:, None] + places
        columns = torch.where(flip[:, None], self.side - 1 - places, places)
        columns = columns + self._random(2 * PAD + 1, len(index))[:, None]
        x = self.padded.permute(0, 2, 3, 1)[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        if self.recipe.cutout:
            edge = self.side - self.recipe.cutout + 1
            y0, x0 = (self._random(edge, len(index))[:, None] for _ in range(2))
            of_rows, of_columns = ((places - at) // self.recipe.cutout == 0 for at in (y0, x0))
            x = x * ~(of_rows[:, :, None] & of_columns[:, None, :])[..., None]
        return x.permute(0, 3, 1, 2)


class Training:
    """A network with its data."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.device = recipe, torch.device(recipe.device)
        self.data = load(Data("cifar10", path=Path(recipe.data), validation=5000, subset=recipe.subset), recipe.T)
        torch.manual_seed(0)
        self.network = network(recipe).to(self.device).to(memory_format=torch.channels_last)
        self.fresh = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.images = Images(*self._all(self.data.train), recipe)
        matrices = [p for p in self.network.parameters() if p.dim() > 1]
        vectors = [p for p in self.network.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=recipe.lr,
            momentum=0.9,
            nesterov=True,
        )
        rule = RateBP()
        self.rule: Any = torch.compile(rule, fullgraph=True, dynamic=False) if recipe.compile else rule

    def _all(self, samples: Samples) -> tuple[Tensor, Tensor]:
        both = list(plain_batches(self.data, samples, 1024, torch.device("cpu")))
        x, y = torch.cat([x for x, _ in both]), torch.cat([y for _, y in both])
        kind = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return x.to(self.device, kind), y.to(self.device)

    @property
    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        with self.autocast:
            logits = self.rule(self.network, x.expand(self.recipe.T, *x.shape)).rate
        loss = F.cross_entropy(logits.float(), y, label_smoothing=self.recipe.smoothing)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def warm_up(self) -> float:
        """Compile; images a second after it, alone on the device or not."""
        batches = list(self._batches(13))
        for x, y in batches[:3]:
            self.step(x, y)
        start = self._now()
        for x, y in batches[3:]:
            self.step(x, y)
        return (len(batches) - 3) * self.recipe.batch / (self._now() - start)

    def _batches(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        while n > 0:
            for batch in self.images.epoch(0):
                if n <= 0:
                    return
                yield batch
                n -= 1

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def restart(self) -> None:
        """To fresh weights."""
        self.network.load_state_dict(self.fresh)
        self.optimizer.state.clear()
        self.network.train()

    def train(self, seconds: float) -> dict[str, Any]:
        """As many epochs as fit, by the speed of a second of steps; the validation accuracy of the last weights."""
        rate = self.warm_up()
        per_epoch = len(self.images.y) // self.recipe.batch
        epochs = max(1, int(0.93 * seconds * rate / (per_epoch * self.recipe.batch)))
        self.restart()
        start, done, total = self._now(), 0, epochs * per_epoch
        curve = []
        for epoch in range(epochs):
            if self._now() - start > 1.1 * seconds:
                break  # with the rate where it is: others wait for their share
            losses = []
            for x, y in self.images.epoch(epoch):
                share = done / total
                rising = self.recipe.warm_up
                lr = self.recipe.lr * min(share / rising, (1 - share) / (1 - rising))
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                losses.append(self.step(x, y))
                done += 1
            if (epoch + 1) % max(1, epochs // 6) == 0 and epoch + 1 < epochs:
                loss = float(torch.stack(losses).mean())
                curve.append({"epoch": epoch + 1, "loss": loss, "validation": self.accuracy(self.data.validation)["plain"]})
        took = self._now() - start
        return {
            "epochs": epochs,
            "steps": [done, total],
            "seconds": round(took, 1),
            "images_per_second": round(done * self.recipe.batch / took),
            "curve": curve,
            "validation": self.accuracy(self.data.validation),
        }

    def accuracy(self, samples: Samples) -> dict[str, float]:
        """Of the images as they are, and of the mean of both mirror images' logits."""
        x, y = self._all(samples)
        self.network.eval()
        plain, both = [], []
        with torch.no_grad(), self.autocast:
            for part in x.split(1000):
                one, other = (BPTT()(self.network, v.expand(self.recipe.T, *v.shape)).rate for v in (part, part.flip(-1)))
                plain.append(one.argmax(1))
                both.append((one.float() + other.float()).argmax(1))
        self.network.train()
        return {
            name: float((torch.cat(found) == y).float().mean()) for name, found in (("plain", plain), ("mirrored", both))
        }


def answers(questions: Iterator[Any]) -> Iterator[dict[str, Any]]:
    """Of a recipe."""
    start = time.perf_counter()
    given = next(questions)
    training = Training(Recipe(**given | {"widths": tuple(given["widths"])}))
    rate = training.warm_up()
    parameters = sum(p.numel() for p in training.network.parameters())
    if training.device.type == "cuda":
        torch.cuda.empty_cache()  # others are warmed up beside it
    yield {"ready_s": time.perf_counter() - start, "images_per_second_warm": rate, "parameters": parameters}
    for question in questions:
        if "train" in question:
            yield training.train(question["train"])
        else:
            yield {"test": training.accuracy(training.data.test)}


if __name__ == "__main__":
    answer_all(answers)
