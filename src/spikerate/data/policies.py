"""Policies of image operations: AutoAugment, RandAugment and TrivialAugment, drawn for groups of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from kornia.augmentation.auto import AutoAugment, RandAugment, TrivialAugment
from kornia.augmentation.auto.operations import ShearX, ShearY, TranslateX, TranslateY
from torch import Tensor

MOST_OPERATIONS = 14
"""The operations that RandAugment chooses from."""
MOST_MAGNITUDE = 29
"""Largest magnitude of RandAugment, whose scale ends at 30."""
_GROUP = 8
"""Images that get the same operations, each with a magnitude or sign of its own where the policy draws one."""
_SHEAR = math.degrees(math.atan(0.3)) / 180
"""The papers' shear of 0.3 pixels a pixel, as kornia has it: a fraction of 180 degrees."""
_TRANSLATE = 150 / 331
"""Largest translation of the papers, as a fraction of the image's side."""
_OPERATIONS: list[list[tuple[str, float | int, float | int | None]]] = [
    [("brightness", 1.0, 1.0)],  # identity
    [("auto_contrast", 0, 1)],
    [("equalize", 0, 1)],
    [("rotate", -30.0, 30.0)],
    [("solarize", 0.0, 1.0)],
    [("color", 0.1, 1.9)],
    [("posterize", 4.0, 8.0)],
    [("contrast", 0.1, 1.9)],
    [("brightness", 0.1, 1.9)],
    [("sharpness", 0.1, 1.9)],
    [("shear_x", -_SHEAR, _SHEAR)],
    [("shear_y", -_SHEAR, _SHEAR)],
    [("translate_x", -_TRANSLATE, _TRANSLATE)],
    [("translate_y", -_TRANSLATE, _TRANSLATE)],
]
"""Name, and the least and largest value: those of Cubuk et al., NeurIPS 2020, and of "TA (RA)" in Mueller and Hutter."""

Policy = Callable[[Tensor], Tensor]
_FARTHEST = {"shear_x": (ShearX, _SHEAR), "shear_y": (ShearY, _SHEAR), "translate_x": (TranslateX, _TRANSLATE)}
_FARTHEST["translate_y"] = (TranslateY, _TRANSLATE)


class _AutoAugment(AutoAugment):  # type: ignore[misc]
    """Kornia's, with the shears and translations of the paper. Kornia takes a shear of 0.3 for 54 degrees, which is 1.4."""

    def compose_subpolicy_sequential(self, subpolicy: Any) -> Any:
        made = super().compose_subpolicy_sequential(subpolicy)
        operations: list[Any] = list(made)
        for k, (name, probability, magnitude) in enumerate(subpolicy):
            if name in _FARTHEST:
                kind, farthest = _FARTHEST[name]
                scale = torch.linspace(-farthest, farthest, 11)[magnitude : magnitude + 2].tolist()
                operations[k] = kind(None, probability, magnitude_range=tuple(scale), symmetric_megnitude=False)
        return type(made)(*operations)


POLICIES: Mapping[str, Callable[[Any], Policy]] = {
    "autoaugment": _AutoAugment,
    "randaugment": lambda setting: RandAugment(setting[0], setting[1], _OPERATIONS),
    "trivialaugment": lambda _: TrivialAugment(_OPERATIONS),
}
"""The policies by the names of the fields of `Augment`, made from what the field is set to."""


@cache
def policy_of(name: str, setting: Any) -> Policy:
    """The policy of that name, made once for each setting."""
    return POLICIES[name](setting)


def by_groups(policy: Policy, x: Tensor) -> Tensor:
    """The policy, drawn anew from PyTorch's generator for each group of 8 of the images x [B, 3, H, W] in [0, 1]."""
    with _counts_in_any_order():
        return torch.cat([policy(group) for group in x.split(_GROUP)])


@contextmanager
def _counts_in_any_order() -> Iterator[None]:
    """Allow nondeterministic kernels for the policies' histograms, which PyTorch refuses on a GPU in a deterministic run.

    They are reproducible all the same: they add whole numbers, whose sum is exact in every order.
    """
    wanted, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(wanted, warn_only=warns)
