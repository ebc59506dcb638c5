"""`python -m spikerate`."""

from spikerate_script import entry

entry()
