"""The command line: the script `spikerate`, and `python -m spikerate`."""

from __future__ import annotations

import signal
import sys


def entry() -> None:
    """Run the command of the command line and end the process with its status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the imports take seconds, in which Control-C just ends the process
    from spikerate.cli.main import main  # which handles signals by itself

    sys.exit(main())


if __name__ == "__main__":
    entry()
