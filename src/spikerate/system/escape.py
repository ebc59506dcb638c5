"""Text from files and file names, made harmless before it is shown."""

from __future__ import annotations

import unicodedata

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode's categories of characters that control what is shown, or show nothing: control characters, marks of writing
direction, lone surrogates (in file names that are not UTF-8), unassigned characters, line and paragraph separators."""


def escaped(text: str) -> str:
    r"""The text in one line, with control characters replaced by Python's escapes: `\x1b`, `\n`, `\u202e`.

    Without it a class called `"\x1b[2Jcat"` would clear the terminal, one with a line break would forge a line of a log,
    and a mark of writing direction (U+202E) would show `gnp.exe` as `exe.png`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN else c for c in text)
