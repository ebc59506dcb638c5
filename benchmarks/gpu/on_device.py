"""A pytest plugin: what a test makes lies on the device of $TEST_DEVICE; each outcome is a line of JSON in $TEST_LINES.

Tests that read a tensor from a file, or want a processor's operations, fail there for that reason; the others must not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _on_device() -> Iterator[None]:
    torch.set_default_device(os.environ["TEST_DEVICE"])
    yield
    torch.set_default_device(None)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write the outcome down at once, for a suite that is ended early."""
    if "PYTEST_XDIST_WORKER" in os.environ or (report.when != "call" and report.outcome != "failed"):
        return
    words = str(report.longrepr.reprcrash.message)[:240] if report.failed and hasattr(report.longrepr, "reprcrash") else ""
    line = {"test": report.nodeid, "outcome": report.outcome, "words": words, "seconds": round(report.duration, 1)}
    with Path(os.environ["TEST_LINES"]).open("a") as file:
        print(json.dumps(line), file=file)
