"""Draws what a command showed in a terminal: `python docs/terminal.py FILE.tty FILE.svg [FRAME]`.

The terminal is recorded by `script -qfc "stty cols 100 rows 36; spikerate train ..." FILE.tty`; FRAME is one of its
views, by default the last but one, before the view stops.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 100
BETWEEN = re.compile(r"(?:\x1b\[2K\x1b\[1A)+\x1b\[2K")
"""How one view is wiped out for the next."""


def picture(recorded: str, frame: int = -2) -> str:
    """A view of a recorded terminal as SVG, which asks for nothing from the network: rich's own would fetch a font."""
    shown = BETWEEN.split(recorded.replace("\r", ""))[frame].rstrip()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    console.print(Text.from_ansi(shown))
    svg = console.export_svg(title="spikerate train", unique_id="live")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    source, target, *frame = sys.argv[1:]
    Path(target).write_text(picture(Path(source).read_text(errors="replace"), *map(int, frame)))
