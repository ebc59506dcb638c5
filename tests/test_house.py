"""The house stays in order: floors, style, types, and documents that run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

import spikerate
from support import ROOT

SOURCE = ROOT / "src" / "spikerate"

FLOORS = [
    {"system"},
    {"data", "autograd", "fused", "losses"},
    {"surrogate", "signal", "targets"},
    {"neuron", "operations", "recompute", "recurrent", "stream"},
    {"adaptive", "integer", "learnable", "readout", "synaptic"},
    {"rules"},
    {"models", "measure"},
    {"gradients"},
    {"runs"},
    {"exchange", "bench", "report"},
    {"cli"},
    {"__main__"},
]
"""The packages and top-level modules: each imports only from floors below it, or from itself."""


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def name_of(file: Path) -> str:
    """The dotted name below spikerate: "data.images"; of a package that of its folder."""
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> set[str]:
    """Names of spikerate's modules that a file imports, below the package: "data.images"."""
    found: set[str] = set()
    known = {name_of(f) for f in modules()}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "spikerate":
            inner = node.module.removeprefix("spikerate").removeprefix(".")
            below = {f"{inner}.{alias.name}".removeprefix(".") for alias in node.names} & known
            found |= below or {inner}
    return found


@pytest.mark.parametrize("file", [f for f in modules() if f != SOURCE / "__init__.py"], ids=name_of)
def test_a_file_imports_only_from_floors_below(file: Path) -> None:
    own = name_of(file).split(".")[0]
    floor = next(k for k, names in enumerate(FLOORS) if own in names)
    below = set().union(*FLOORS[:floor])
    for name in imports(file):
        top = name.split(".")[0]
        assert top in below or top == own, f"{file.relative_to(SOURCE)} imports {name}"


def test_no_file_imports_in_a_circle() -> None:
    wanted = {name_of(f): imports(f) for f in modules() if f.name != "__init__.py"}
    done: set[str] = set()
    while ready := {name for name, needs in wanted.items() if name not in done and needs & wanted.keys() <= done}:
        done |= ready
    assert done == wanted.keys(), f"in a circle: {sorted(wanted.keys() - done)}"


def test_every_file_has_a_floor_and_a_role() -> None:
    for file in modules():
        assert ast.get_docstring(ast.parse(file.read_text())), f"{file} says nothing of its role"
    names = {name_of(f).split(".")[0] for f in modules()} - {"__init__"}
    assert names == set().union(*FLOORS)


def test_who_begins_signals_brings_their_operations() -> None:
    """A tape begins with them; without `operations` the table in which they look for torch's functions would be empty."""
    begun = [f for f in modules() if re.search(r"\bTape\(", f.read_text()) and f.name != "signal.py"]
    assert begun
    for file in begun:
        assert {"operations", "rules"} & imports(file), f"{file.relative_to(SOURCE)} begins signals without their operations"


def test_the_front_door_brings_pytorch_and_nothing_else() -> None:
    """Only `load` brings what reads and writes runs; a name is found in the module that type checkers are told of."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    checked = {a.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    homes = {name: f"spikerate.{module}" for name, module in spikerate._HOMES.items()}
    assert homes.items() <= checked.items() and spikerate.__all__ == sorted(homes, key=spikerate.__all__.index)
    code = f"""
import sys
import spikerate
assert "torch" not in sys.modules and "spikerate.neuron" not in sys.modules
from spikerate import LIF
for name in {sorted(homes.keys() - {"load"})}:
    getattr(spikerate, name)
print(*sys.modules.keys() & {{"tyro", "kornia", "pooch", "PIL", "rich", "matplotlib", "safetensors", "spikerate.runs"}})
spikerate.load
assert "spikerate.runs" in sys.modules
from spikerate import *
spikerate.nothing
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "\n", done.stdout + done.stderr
    assert done.stderr.endswith("AttributeError: module 'spikerate' has no attribute 'nothing'\n")


@pytest.mark.parametrize("command", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_style_and_types(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_constraints_pin_what_is_installed_and_what_is_asked_for() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [re.match(r"[\w-]+", d)[0].lower() for d in project["dependencies"] + project["optional-dependencies"]["test"]]  # type: ignore[index]
    assert set(asked) <= set(pins)
    assert pins["torch"] == "2.13.0"
    assert version("spikerate") == project["version"]
    for name in asked:
        floor = next(
            d for d in project["dependencies"] + project["optional-dependencies"]["test"] if d.lower().startswith(name)
        )
        assert ">=" in floor and "==" not in floor and "<" not in floor


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


EXAMPLES = ("method", "transformers", "data", "energy", "export")


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{page}.md" for page in EXAMPLES)])
def test_the_documents_examples_run(document: str, run_python: Callable[[str], None]) -> None:
    for block in blocks(document, "python"):
        run_python(block)


def test_the_documents_links_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_library_example_has_twelve_lines() -> None:
    code = [line for line in blocks("README.md", "python")[0].splitlines() if line.strip()]
    assert len(code) == 12


def test_ci_runs_the_readmes_test_command() -> None:
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
    assert any("pytest" in block for block in blocks("README.md", "sh"))
