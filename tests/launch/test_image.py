"""The container image: it has the same requirements as `make`, and holds only the code."""

import re
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from torchx.workspace.api import walk_workspace

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HADOLINT = Path(sys.executable).with_name("hadolint")


def instructions(text):
    """(word, rest) of each instruction of a Dockerfile, with continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", text))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]


def requirements(command):
    return set(re.findall(r"-r (requirements/\S+)", command))


def test_the_image_is_built_from_the_makefiles_requirements_for_the_same_python():
    image = instructions((ROOT / "Dockerfile").read_text())
    make = (ROOT / "Makefile").read_text()
    runs = " ".join(rest for word, rest in image if word == "RUN").replace("${MACHINE}", "MACHINE")
    by_make = requirements(make.replace("$(MACHINE)", "MACHINE"))
    assert requirements(runs) == by_make - {"requirements/dev.txt"} != set()
    assert "-e ." in runs
    assert "-e ." in make
    (base,) = [rest for word, rest in image if word == "FROM"]
    (python,) = re.findall(r"^PYTHON \?= python(.*)$", make, re.MULTILINE)
    assert base.startswith(f"python:{python}-")


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_both_machines_have_requirements(machine):
    defaults = [
        rest for word, rest in instructions((ROOT / "Dockerfile").read_text()) if word == "ARG"
    ]
    assert defaults == ["MACHINE=cpu"]
    assert (ROOT / f"requirements/{machine}.txt").is_file()


def test_the_image_holds_all_code_and_neither_data_sets_nor_tests():
    walked = walk_workspace(fsspec.filesystem("file"), str(ROOT), ".dockerignore")
    held = {Path(folder, name).relative_to(ROOT) for folder, _, files in walked for name in files}
    code = {
        path.relative_to(ROOT)
        for layer in ("data", "model", "launch", "tools", "requirements")
        for path in (ROOT / layer).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert code | {Path("pyproject.toml"), Path("hatch_build.py"), Path("README.md")} <= held
    assert {path.parts[0] for path in held - code} == {
        *("configs", "hatch_build.py", "pyproject.toml", "README.md")
    }


def hadolint(file):
    if not HADOLINT.is_file():
        pytest.skip("hadolint is not installed next to this interpreter")
    return subprocess.run([HADOLINT, file], capture_output=True, text=True, check=False)


def test_hadolint_accepts_the_dockerfile_and_finds_a_fault_in_a_worse_one(tmp_path):
    assert hadolint(ROOT / "Dockerfile").stdout == ""
    worse = (ROOT / "Dockerfile").read_text().replace(" --no-cache-dir", "")
    (tmp_path / "Dockerfile").write_text(worse)
    assert "DL3042" in hadolint(tmp_path / "Dockerfile").stdout
