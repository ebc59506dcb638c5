"""What a piece has found so far, in a file that is whole after every entry: a piece cut short loses nothing, and goes on."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Figures:
    """The entries of a piece, name -> JSON types, and the file that holds them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def keep(self, name: str, value: Any) -> None:
        """Write an entry."""
        self.found[name] = value
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.found, indent=1) + "\n")
        temporary.replace(self.file)

    def attempt(self, name: str, what: Callable[[], Any]) -> None:
        """Do something unless it is done already, and keep what it returns, or of what it died; the rest goes on."""
        if self.found.get(name, {}).get("ok"):
            return
        start = time.perf_counter()
        try:
            entry = {"ok": True, "value": what()}
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            words = str(error).strip()[:600]
            entry = {"ok": False, "died": f"{type(error).__name__}: {words}", "at": f"{where.filename}:{where.lineno}"}
            print(f"FAILED {name}: {entry['died']}", flush=True)
        self.keep(name, entry | {"seconds": round(time.perf_counter() - start, 2)})
        print(f"{name}: {'ok' if entry['ok'] else 'failed'}, {time.perf_counter() - start:.1f} s", flush=True)
