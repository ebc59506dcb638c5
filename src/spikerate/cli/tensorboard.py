"""The log of a run for TensorBoard: the metrics of each epoch, and the loss terms of a step every few seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from spikerate.losses import Terms
from spikerate.runs.state import Row

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

FOLDER = "tensorboard"
"""Its folder inside a run folder."""
_SECONDS = 10


class Board:
    """Watches a training, and writes event files; their x-axis is the number of steps done.

    A log that is there already goes on from the first step that is seen: TensorBoard drops what a stopped run has logged
    after its checkpoint.

    Args:
        folder: of the event files.
        steps: of an epoch.
        rows: of the epochs that are done already; they are written where there is no log yet.

    Raises:
        ValueError: TensorBoard is missing.
    """

    def __init__(self, folder: Path, steps: int, rows: Sequence[Row] = ()) -> None:
        check_installed(f"remove {folder}")
        self.folder = folder
        self.steps = steps
        self.rows = rows
        self.shown = 0.0
        self.writer: SummaryWriter | None = None

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.writer is not None:
            self.writer.close()

    def say(self, line: str) -> None:
        pass

    def step(self, step: int, terms: Terms) -> None:
        now = time.monotonic()
        if self.writer is None:
            self.writer = self._begin(step)
        elif now - self.shown < _SECONDS:
            return
        self.shown = now
        for name, value in terms.items():
            self.writer.add_scalar(f"step/{name}", float(value), step)

    def epoch(self, row: Row) -> None:
        assert self.writer is not None, "an epoch has steps"
        _write(self.writer, row, self.steps)
        self.writer.flush()

    def _begin(self, step: int) -> SummaryWriter:
        # here, since TensorBoard may be missing, and takes a second
        from torch.utils.tensorboard.writer import SummaryWriter

        fresh = not any(self.folder.glob("events.out.*"))
        writer = SummaryWriter(self.folder, purge_step=step)
        for row in self.rows if fresh else ():
            _write(writer, row, self.steps)
        return writer


def check_installed(otherwise: str) -> None:
    """Raise `ValueError` if TensorBoard is not installed; `otherwise` names the alternative for the message."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"the run is logged for TensorBoard, which is missing: pip install 'spikerate[tensorboard]', or {otherwise}"
        ) from error


def _write(writer: SummaryWriter, row: Row, steps: int) -> None:
    of_layers = {f"firing_rate/{layer}": rate for layer, rate in row.get("firing_rates", {}).items()}
    figures = {name: value for name, value in row.items() if name not in ("epoch", "firing_rates")}
    for name, value in (figures | of_layers).items():
        writer.add_scalar(name, value, row["epoch"] * steps)
