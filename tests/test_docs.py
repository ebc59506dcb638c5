"""The documentation: its examples run, and the site is built, whole, and asks for nothing from the network."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from spikerate import __all__ as names
from support import ROOT

DOCS = ROOT / "docs"
BLOCK = re.compile(r"```(sh|python|text)\n(.*?)```", re.DOTALL)
ASSETS = {"audio", "iframe", "img", "input", "link", "object", "script", "source", "use", "video"}
"""Elements that a browser loads something for; `a` waits for a click."""

Command = Callable[..., subprocess.CompletedProcess[str]]


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and content of the examples of a page, in order."""
    return [(found[1], found[2]) for found in BLOCK.finditer((DOCS / page).read_text())]


def test_the_tutorial_runs_as_it_stands(spikerate: Command, run_python: Callable[[str], None], tmp_path: Path) -> None:
    shown = ""
    for language, code in blocks("tutorial.md"):
        if language == "python":
            run_python(code)
        elif language == "sh":
            commands = [shlex.split(line) for line in code.replace("\\\n", "").splitlines()]
            assert all(words[0] == "spikerate" for words in commands), code
            done = [spikerate(*words[1:]) for words in commands]
            assert not any(d.returncode for d in done), code + "".join(d.stderr for d in done)
            shown = "".join(d.stdout for d in done)
        else:  # an excerpt of what the commands above print: the numbers may differ, the words not
            words = set(re.findall(r"[A-Za-z]\w+(?:[.-]\w+)*", code))
            assert words and {word for word in words if word not in shown} == set(), shown
    assert json.loads((tmp_path / "runs" / "shapes" / "result.json").read_text())["test_accuracy"] > 0.7


@pytest.mark.parametrize("page", sorted(p.relative_to(DOCS).as_posix() for p in (DOCS / "howto").glob("*.md")))
def test_the_examples_of_the_how_to_pages_run(page: str, run_python: Callable[[str], None]) -> None:
    assert {language for language, _ in blocks(page)} <= {"python", "text"}
    run_python("\n".join(code for language, code in blocks(page) if language == "python"))


def test_the_pictures_are_those_that_the_code_draws(tmp_path: Path) -> None:
    if f"matplotlib=={version('matplotlib')}" not in (ROOT / "constraints.txt").read_text():
        pytest.skip("another matplotlib draws other files")
    runpy.run_path(str(DOCS / "pictures.py"))["draw"](tmp_path)
    drawn = sorted(tmp_path.iterdir())
    assert len(drawn) == 4
    number = re.compile(r"-?\d+\.\d+")
    for picture in drawn:
        here, again = (DOCS / picture.name).read_text(), picture.read_text()
        assert number.sub("#", here) == number.sub("#", again)
        assert [float(n) for n in number.findall(here)] == pytest.approx([float(n) for n in number.findall(again)], abs=1e-3)


class Seen(HTMLParser):
    """What a page has and refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.assets: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {values["id"]} if values.get("id") else set()  # type: ignore[arg-type]
        wanted = {values.get(name) for name in ("href", "src", "data", "poster", "srcset", "xlink:href")} - {None, ""}
        (self.assets if tag in ASSETS else self.links).update(wanted)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by `mkdocs build --strict`."""
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module)
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Seen]:
    return {file: Seen(file.read_text()) for file in site.rglob("*.html")}


def test_every_page_is_in_the_site_and_every_link_in_it_leads_somewhere(site: Path, pages: dict[Path, Seen]) -> None:
    assert {p.relative_to(DOCS).with_suffix(".html") for p in DOCS.rglob("*.md")} <= {p.relative_to(site) for p in pages}
    for page, seen in pages.items():
        for link in seen.links | seen.assets:
            url = urlsplit(link)
            if url.scheme or url.netloc or page.name == "404.html":
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.name} refers to {link}"
            if url.fragment and target in pages:
                assert unquote(url.fragment) in pages[target].anchors | {"__search"}, f"{page.name} refers to {link}"


def test_nothing_is_asked_for_from_the_network(site: Path, pages: dict[Path, Seen]) -> None:
    for page, seen in pages.items():
        remote = {asset for asset in seen.assets if urlsplit(asset).netloc and page.name != "404.html"}
        assert not remote, f"{page.name} loads {remote}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet.name


def test_the_reference_has_every_name_and_reads_its_docstring(site: Path, pages: dict[Path, Seen]) -> None:
    assert {f"spikerate.{name}" for name in names} <= pages[site / "api.html"].anchors
    text = re.sub(r"<[^>]+>", "", (site / "api.html").read_text())
    assert "Args:" not in text
    assert min(text.count("Parameters:"), text.count("Raises:")) > 10 and text.count("Returns:") > 3


def test_the_first_page_is_the_readmes(site: Path, pages: dict[Path, Seen]) -> None:
    assert {"two-commands", "as-a-library", "where-to-go"} <= pages[site / "index.html"].anchors
    assert {"idea.svg"} <= pages[site / "index.html"].assets
    assert "torchrun" in (site / "commands.html").read_text()


def test_a_section_that_the_readme_has_not_stops_the_build() -> None:
    pytest.importorskip("mkdocs")
    readme = runpy.run_path(str(DOCS / "hook.py"))["readme"]
    with pytest.raises(ValueError, match="the README has no section 'No such'"):
        readme("No such")
