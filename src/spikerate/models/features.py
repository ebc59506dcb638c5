"""The firing rates between the stages of a network, for a head outside: a detector's, or one of segmentation."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import Tensor, nn

from spikerate.models.staged import Staged
from spikerate.signal import Signal


class Features(nn.Module):
    """A staged network without its head that returns what its stages fire, at several resolutions.

    Call by a rule: `RateBP()(Features(network), x)` with x [T, B, C, H, W] -> a dict, stage name -> rate [B, C, H, W], with
    its gradient under every rule. What takes them, an ordinary network for instance, is trained together with the stages;
    stages after the last one that is asked for do not run.

    Args:
        network: any `Staged`; its weights are shared, not copied.
        stages: names of the stages; None for all.

    Raises:
        ValueError: there is no stage of a name.
    """

    def __init__(self, network: Staged, stages: Sequence[str] | None = None) -> None:
        super().__init__()
        wanted = list(dict.fromkeys(network.stages if stages is None else stages))
        for name in wanted:
            if name not in network.stages:
                near = difflib.get_close_matches(name, network.stages, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise ValueError(f"there is no stage {name!r}: {hint}the stages are {', '.join(network.stages)}")
        if not wanted:
            raise ValueError(f"Features.stages is empty: give names among {', '.join(network.stages)}")
        self.network = network
        self.stages = tuple(wanted)

    def forward(self, x: Signal) -> dict[str, Tensor]:
        rates: dict[str, Tensor] = {}
        x = self.network.stem(x)
        for name, stage in self.network.stages.items():
            x = stage(x)
            if name in self.stages:
                rates[name] = x.tap()
            if len(rates) == len(self.stages):
                break
        return {name: rates[name] for name in self.stages}
