"""Text of files, folders and strangers, made harmless before anybody sees it."""

from __future__ import annotations

import unicodedata

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode's categories of characters that steer what is shown, or show nothing: controls, marks of direction, halves of
pairs (which a file name that is no UTF-8 becomes), unassigned ones, ends of lines and paragraphs."""


def escaped(text: str) -> str:
    r"""The text in one line; a character that could steer a terminal or a page as Python writes it: `\x1b`, `\n`, `\u202e`.

    Without it a class called `"\x1b[2Jcat"` would clear the terminal, one with a line break would write a line of its own
    into a log, and a mark of direction (U+202E) would show `gnp.exe` as `exe.png`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN else c for c in text)
