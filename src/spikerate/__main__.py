"""`python -m spikerate`."""

from spikerate.cli import entry

entry()
