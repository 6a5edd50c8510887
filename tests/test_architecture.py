"""The house: who imports whom, what the wheel holds, and that the docstring examples run."""

import ast
import doctest
import importlib
import tomllib
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["data", "model", "launch", "tools"]
ROOT_PACKAGE = ROOT / "tools" / "api"
MODULES = sorted(p for layer in LAYERS for p in (ROOT / layer).rglob("*.py"))


def dotted(path):
    base = ROOT_PACKAGE if path.is_relative_to(ROOT_PACKAGE) else ROOT
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(("msrec", *(part for part in parts if part != "__init__")))


def imported_names(source):
    """(line, dotted name) of every import; `from a import b` names both a and a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def breaches(place, source):
    """Imports of a layer to the right of the module's own."""
    layer = LAYERS.index(place.split("/")[0])
    for line, name in imported_names(source):
        parts = name.split(".")
        if parts[0] == "msrec" and len(parts) > 1 and parts[1] in LAYERS[layer + 1 :]:
            yield f"{place}:{line} imports {name}"
        if place.startswith("model/backbones") and name.startswith("msrec.model.meta"):
            yield f"{place}:{line} imports {name}: meta wraps backbones, not the other way round"


def test_every_layer_imports_only_what_stands_left_of_it():
    found = [
        breach
        for path in MODULES
        for breach in breaches(str(path.relative_to(ROOT)), path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    ["import msrec.launch.cli", "from msrec import launch", "from msrec.launch.cli import main"],
)
def test_the_layer_check_catches_every_form_of_import(line):
    assert list(breaches("data/llm/__init__.py", line))[0].startswith(
        "data/llm/__init__.py:1 imports"
    )


def test_every_module_says_its_job_in_its_first_line():
    empty = [
        str(path)
        for path in MODULES
        if path.read_text() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert empty == []


def test_requirements_and_metadata_name_the_same_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {name.split(">")[0].split("=")[0].lower() for name in project["dependencies"]}
    lines = (ROOT / "requirements" / "base.txt").read_text().splitlines()
    lines.append(
        next(w for w in (ROOT / "requirements/cpu.txt").read_text().split() if "torch==" in w)
    )
    pinned = {line.split("=")[0].lower() for line in lines if "==" in line}
    assert declared == pinned


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_docstring_examples_run(path):
    # Imported by name: `--doctest-modules data` would import each module under a second identity.
    if path.name == "__main__.py":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = importlib.import_module(dotted(path))
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
