"""It leaves a trace when it is imported."""

from pathlib import Path

from stranger.parts import Louder

Path("imported").touch()
Trap = type("Trap", (Louder,), {"__module__": __name__})
