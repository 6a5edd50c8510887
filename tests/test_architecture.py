"""Structure of the code: imports, file and folder circles, types for editors, docstrings."""

import ast
import doctest
import importlib
import json
import re
import subprocess
import tomllib
import warnings
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
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


def later_layers_named(place, source):
    """Strings, docstrings excepted, that name a module of a layer to the right."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    later = "|".join(LAYERS[LAYERS.index(place.split("/")[0]) + 1 :])
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if later and is_text and id(node) not in docstrings:
            if re.search(rf"msrec\.({later})\b", node.value):
                yield f"{place}:{node.lineno} names {node.value}"


def test_no_string_names_a_later_layer():
    found = [
        breach
        for path in MODULES
        for breach in later_layers_named(str(path.relative_to(ROOT)), path.read_text())
    ]
    assert found == []
    assert list(later_layers_named("launch/x.py", 'run("-m msrec.tools.cli")'))
    assert not list(later_layers_named("launch/x.py", '"""See msrec.tools."""\n"msrec.data.x"'))


def import_graph(sources):
    """Dotted module -> modules among `sources` that it imports; empty ones do not count."""
    return {
        name: {target for _, target in imported_names(source) if target in sources} - {name}
        for name, source in sources.items()
    }


def circle(graph):
    """A circle of a graph, as a list of names, or [] if it has none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def of_folders(graph, folder_of):
    """The graph of the folders of modules."""
    folders = defaultdict(set)
    for name, targets in graph.items():
        folders[folder_of[name]] |= {folder_of[target] for target in targets}
    return {name: targets - {name} for name, targets in folders.items()}


def test_neither_files_nor_folders_import_each_other_in_a_circle():
    # `python -m msrec` starts the CLI, which calls the Python API: an entry point is no import.
    modules = [path for path in MODULES if path.name != "__main__.py"]
    sources = {dotted(path): text for path in modules if (text := path.read_text().strip())}
    folder_of = {dotted(path): str(path.parent.relative_to(ROOT)) for path in MODULES}
    graph = import_graph(sources)
    assert circle(graph) == []
    assert circle(of_folders(graph, folder_of)) == []


def test_the_circle_check_finds_circles_of_files_and_of_folders():
    sources = {"a.x": "import b.x", "b.x": "from b import y", "b.y": "import a.y", "a.y": ""}
    files = import_graph(sources)
    assert circle(files) == []
    assert set(circle(of_folders(files, {name: name[0] for name in files}))) == {"a", "b"}
    assert set(circle(import_graph({"a": "import b", "b": "import a"}))) == {"a", "b"}


def test_no_folder_has_more_than_thirteen_files():
    allowed = {ROOT / "model/backbones", ROOT / "data/convert/sources"}
    counts = defaultdict(int)
    for path in MODULES:
        counts[path.parent] += path.name != "__init__.py"
    assert {str(p): n for p, n in counts.items() if n > 13 and p not in allowed} == {}


@pytest.mark.slow
def test_editors_resolve_every_import_of_msrec(tmp_path):
    """basedpyright knows the packages only by the links that the editable installation makes."""
    names = {line for path in MODULES for line in ours(path.read_text())}
    assert len(names) > 100
    (tmp_path / "imports.py").write_text("\n".join(sorted(names)) + "\n")
    settings = {"include": ["imports.py"], "venvPath": str(ROOT), "venv": ".venv"}
    settings |= {"typeCheckingMode": "off", "reportMissingImports": "error"}
    settings |= {"reportAttributeAccessIssue": "error", "pythonVersion": "3.11"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [ROOT / ".venv/bin/basedpyright", "--outputjson", "-p", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    report = json.loads(done.stdout)
    assert [each["message"] for each in report["generalDiagnostics"]] == []
    assert report["summary"]["filesAnalyzed"] == 1


def ours(source):
    """The statements of a source that import from msrec, one name each."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "msrec":
            yield from (f"from {node.module} import {alias.name}" for alias in node.names)


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


def test_the_lock_has_every_pin():
    def pins(name):
        text = (ROOT / "requirements" / name).read_text().lower().replace("_", "-")
        return {word.replace("[server]", "") for word in text.split() if "==" in word}

    for name in ("base.txt", "cpu.txt", "dev.txt"):
        assert pins(name) - pins("cpu.lock") == set(), name


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
