"""`python -m spikerate`."""

from spikerate.cli.main import entry

entry()
