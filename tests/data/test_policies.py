"""RandAugment, TrivialAugment and Random Erasing: which operations, how strong, and what can not be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spikerate.data import Augment
from spikerate.data.policies import MOST_OPERATIONS, POLICIES, policy_of


def changed(x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    return (x - image).abs().flatten(1).amax(1) > 1e-4


@pytest.mark.parametrize("augment", [Augment(randaugment=(2, 9)), Augment(trivialaugment=True)])
def test_groups_of_a_batch_draw_their_own_operations(augment: Augment) -> None:
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = augment(image.repeat(96, 1, 1, 1), 3)
    assert x.shape == (96, 3, 32, 32) and x.min() >= -1e-6 and x.max() <= 1 + 1e-6
    groups = x.view(12, 8, -1)
    means = {round(float(group.mean()), 4) for group in groups}
    assert len(means) > 6
    assert int(changed(x, image).view(12, 8).any(1).sum()) > 6


def test_the_magnitude_makes_it_stronger() -> None:
    x = torch.rand(400, 3, 16, 16, generator=torch.Generator().manual_seed(0)).mul(0.5).add(0.25)
    weak, strong = (float((Augment(randaugment=(1, m))(x, 0) - x).abs().mean()) for m in (1, 29))
    assert weak < strong


def test_a_shear_is_that_of_the_papers() -> None:
    """0.3 pixels a pixel at most: the top and the bottom of a column drift apart by 0.3 of its height."""
    column = torch.zeros(64, 3, 41, 41)
    column[:, :, :, 20] = 1
    policy: Any = policy_of("trivialaugment", True)
    (shear,) = (module[0] for module in policy.children() if type(module[0]).__name__ == "ShearX")
    torch.manual_seed(0)
    rows = shear(column)[:, 0].argmax(-1).double()  # [64, H]: where the column is in each row
    drift = (rows[:, 40] - rows[:, 0]).abs()
    assert 9 < float(drift.max()) <= 13
    assert {*(rows[:, 40] > rows[:, 0]).tolist()} == {False, True}


def test_autoaugment_shears_and_translates_as_far_as_the_papers() -> None:
    """Magnitude 8 of 10 is a shear of 0.18 to 0.24 pixels a pixel; the farthest translation is 150 of 331 of the side."""
    row = torch.zeros(64, 3, 41, 41)
    row[:, :, 20] = 1
    policy: Any = policy_of("autoaugment", "cifar10")
    found = [(type(op).__name__, op) for module in policy.children() for op in module.children()]
    torch.manual_seed(0)
    far, moved = [], []
    for name, op in found:
        if name == "ShearY":
            columns = op(row)[:, 0].argmax(1).double()  # [64, W]: where the row is in each column
            far.append(float((columns[:, 40] - columns[:, 0]).abs().max()) / 40)
        moved += op.magnitude_range if name.startswith("Translate") else []
    assert max(map(abs, moved)) == pytest.approx(150 / 331)
    assert far and 0.1 < max(far) <= 0.3


def test_erasing_takes_a_rectangle_of_some_samples() -> None:
    x = Augment(erasing=0.5)(torch.ones(400, 2, 3, 20, 20), 0)
    gone = (x == 0).all(2).all(1)
    assert torch.equal(gone, (x == 0).any(2).any(1)), "all channels and frames alike"
    areas = gone.sum((1, 2))
    assert 150 < int((areas > 0).sum()) < 250
    for one in gone[areas > 0]:
        rows, columns = int(one.any(1).sum()), int(one.any(0).sum())
        assert rows * columns == int(one.sum())
        assert 0.01 * 400 <= rows * columns <= 0.4 * 400  # whole pixels
    assert torch.equal(Augment(erasing=1.0)(torch.ones(9, 1, 8, 8), 0).amin((1, 2, 3)), torch.zeros(9))


def test_all_operations_can_be_drawn() -> None:
    x = torch.rand(8, 3, 16, 16)
    assert Augment(randaugment=(MOST_OPERATIONS, 29))(x, 0).isfinite().all()
    assert set(POLICIES) == {"autoaugment", "randaugment", "trivialaugment"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Augment(randaugment=(0, 9)), "augment.randaugment is 0: give a number of operations >= 1, and 14 at most"),
        (lambda: Augment(randaugment=(2, 30)), "augment.randaugment is 30: give a magnitude >= 1, and 29 at most"),
        (lambda: Augment(erasing=1.5), "augment.erasing is 1.5: give a probability from 0 to 1"),
        (lambda: Augment(erasing=float("nan")), "augment.erasing is nan"),
        (lambda: Augment(randaugment=(2, 9), trivialaugment=True), "has randaugment and trivialaugment: give one policy"),
    ],
)
def test_what_can_not_be_is_a_sentence(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
