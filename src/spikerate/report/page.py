"""The page of a report: one self-contained HTML file."""

from __future__ import annotations

import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spikerate.measure.energy import AC_PJ, MAC_PJ
from spikerate.models import short_path
from spikerate.report import charts
from spikerate.report.gather import Report
from spikerate.system import environment
from spikerate.system.escape import escaped
from spikerate.system.files import is_there, open_plain, write_whole

_MARK = b'<!doctype html>\n<meta name="generator" content="spikerate report">\n'
"""The beginning of a report; only files that begin like this are overwritten."""


def write(report: Report, file: Path) -> None:
    """Write a report as one self-contained HTML file.

    Raises:
        ValueError: there is something else in its place, or it can't be written.
    """
    check_place(file)
    engine = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {
        "share": lambda value: charts.in_words(value, "share").replace(" %", "\N{NO-BREAK SPACE}%"),
        "number": lambda value: charts.in_words(value, "number"),
        "count": lambda value: charts.in_words(value, "count"),
        "joules": lambda value: charts.in_words(value, "joules"),
        "quoted": lambda path: shlex.quote(str(path)),
        "short": short_path,
        "breakable": lambda name: Markup(".\u200b").join(name.split(".")),
    }
    about = {"made": environment.now(), "version": version("spikerate"), "mac_pj": MAC_PJ, "ac_pj": AC_PJ}
    page = engine.get_template("page.html.jinja").render(report=report, box=charts, len=len, **about)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, _MARK + page.encode())
    except OSError as error:
        raise ValueError(f"{file} can't be written ({error.strerror}): choose another by --out") from error


def _plain(value: Any) -> Any:
    """A value as the page shows it; texts from files without characters that could change the direction of writing."""
    return escaped(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def check_place(file: Path) -> None:
    """Raise `ValueError` if a report can't be written there: the path is a folder, a device, or another kind of file."""
    if not is_there(file):
        return
    try:
        there = open_plain(file)
    except OSError as error:
        raise ValueError(f"{file} can't be read ({error.strerror}): choose another by --out") from error
    except ValueError as error:
        raise ValueError(f"{error}; or choose another by --out") from error
    with there:
        if there.read(len(_MARK)) != _MARK:
            raise ValueError(f"{file} already exists and is not a report: choose another by --out")
