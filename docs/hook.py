"""Brings into the site what its pages take from outside of this folder: parts of the README, and files that they link to."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LINK = re.compile(r"(?<=\]\()[^)\s#:]+(?=[)#])")
PART = re.compile(r"<!-- README(?:: (.+))? -->")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put parts of the README in place of `<!-- README: HEADING -->`, and give the site the files that the page links to."""
    source = Path(page.file.src_uri)

    def brought(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(DOCS / source.parent / link[0]))
        if target.is_relative_to(DOCS) or not target.is_file():
            return link[0]
        place = "files" / target.relative_to(ROOT)
        if place.as_posix() not in files.src_uris:
            files.append(File.generated(config, place.as_posix(), abs_src_path=str(target)))
        return Path(os.path.relpath(place, source.parent)).as_posix()

    return LINK.sub(brought, PART.sub(lambda part: readme(part[1]), markdown))


def readme(heading: str | None) -> str:
    """A section of the README, or what stands before the first one, with links as from this folder.

    Raises:
        ValueError: there is no such section.
    """
    start, *parts = re.split(r"^(?=## )", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {part.splitlines()[0].removeprefix("## "): part for part in parts} | {None: start}
    if heading not in found:
        raise ValueError(f"the README has no section {heading!r}: name one of its headings in the page")
    return LINK.sub(lambda link: Path(os.path.relpath(ROOT / link[0], DOCS)).as_posix(), found[heading])
