"""The `spikerate` script: beside the package, whose import takes seconds, so that Control-C ends it at any moment."""

from __future__ import annotations

import signal
import sys


def entry() -> None:
    """Run the command of the command line and end the process with its status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is under way yet; `main` heeds signals by itself
    from spikerate.cli.main import main

    sys.exit(main())
