"""Version check, which does not import torch, and the report of `msrec doctor`."""

import re
import subprocess
import sys
from importlib import metadata

import pytest
from rich.console import Console

from msrec.launch import versions
from msrec.launch.versions import check_versions, require_versions
from msrec.tools import doctor as doctor_tool

pytestmark = pytest.mark.slow

CPU = {
    "torch": "2.13.0+cpu",
    "fbgemm-gpu": "1.8.0+cpu.shim",
    "fbgemm-gpu-cpu": "1.8.0",
    "torchrec": "1.8.0",
}
GPU = {"torch": "2.13.0+cu130", "fbgemm-gpu": "1.8.0", "torchrec": "1.8.0"}


@pytest.fixture
def machine(monkeypatch):
    """Pretend that these packages are installed, with or without an NVIDIA driver."""

    def pretend(packages, driver=False):
        def version(name):
            if name not in packages:
                raise metadata.PackageNotFoundError(name)
            return packages[name]

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(versions, "has_nvidia_driver", lambda: driver)

    return pretend


@pytest.mark.parametrize(
    ("packages", "driver"),
    [(CPU, False), (CPU, True), (GPU, True), (GPU, False), (CPU | {"torch": "2.13.0"}, False)],
    ids=["cpu", "cpu set on a gpu machine", "gpu", "gpu set on a login node", "cuda torch"],
)
def test_matching_packages_have_no_problem(machine, packages, driver):
    machine(packages, driver)
    assert check_versions() == []
    require_versions()


def test_shim_may_be_absent(machine):
    machine({name: v for name, v in CPU.items() if name != "fbgemm-gpu"})
    assert check_versions() == []


@pytest.mark.parametrize("name", ["torch", "fbgemm-gpu-cpu", "torchrec"])
def test_wrong_version_is_named_with_the_install_lines(machine, name):
    machine(CPU | {name: "1.9.0"})
    [problem] = check_versions()
    assert (problem.package, problem.found) == (name, "1.9.0")
    assert "pip install -r requirements/cpu.txt" in problem.fix
    assert "pip install torch==2.13.0 fbgemm-gpu-cpu==1.8.0" in problem.fix
    assert "pip install --no-deps torchrec==1.8.0" in problem.fix


def test_missing_package_is_named(machine):
    machine({name: v for name, v in CPU.items() if name != "torchrec"})
    with pytest.raises(ValueError, match=r"^torchrec must be 1.8.0, found nothing\. Run: pip"):
        require_versions()


def test_fix_without_a_gpu_installs_the_cpu_packages(machine):
    machine({"torch": "2.14.1", "fbgemm-gpu": "1.9.0", "torchrec": "1.9.2"}, driver=False)
    assert {p.package for p in check_versions()} == {
        "torch", "fbgemm-gpu-cpu", "torchrec", "fbgemm-gpu"
    }  # fmt: skip
    with pytest.raises(ValueError, match="pip uninstall -y fbgemm-gpu .*requirements/cpu.txt"):
        require_versions()


def test_fix_with_a_gpu_installs_the_gpu_packages(machine):
    machine(GPU | {"fbgemm-gpu": "1.9.0"}, driver=True)
    with pytest.raises(ValueError, match="pip install -r requirements/gpu.txt"):
        require_versions()


def test_two_builds_of_fbgemm_are_refused(machine):
    machine(CPU | {"fbgemm-gpu": "1.8.0"})
    assert [p.package for p in check_versions()] == ["fbgemm-gpu"]
    machine(GPU | {"fbgemm-gpu-cpu": "1.8.0"}, driver=True)
    assert [p.package for p in check_versions()] == ["fbgemm-gpu-cpu"]


def test_install_lines_equal_the_requirement_files(pytestconfig):
    for name, lines in (("cpu", versions.CPU_LINES), ("gpu", versions.GPU_LINES)):
        text = (pytestconfig.rootpath / "requirements" / f"{name}.txt").read_text()
        pins = re.findall(r"^(?:torch|fbgemm|torchrec)\S*==\S+", text, re.MULTILINE)
        assert len(pins) == 3
        assert all(pin in lines[1] for pin in pins)


def test_version_check_does_not_import_torch():
    code = "import sys; from msrec.launch.versions import check_versions; check_versions()\n"
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def run_doctor(tmp_path):
    console = Console(width=220)
    with console.capture() as capture:
        status = doctor_tool.doctor(tmp_path, console)
    return status, capture.get()


def test_doctor_passes_on_this_machine(tmp_path):
    status, text = run_doctor(tmp_path)
    assert status == 0, text
    for name in (
        "versions",
        "import torchrec",
        "fbgemm_gpu, an op on CPU",
        "gloo on loopback",
        "disk",
    ):
        assert re.search(rf"{name} *│ ok", text), text


def test_doctor_prints_the_fix_for_a_wrong_version(machine, monkeypatch, tmp_path):
    machine(CPU | {"torchrec": "1.9.2"})
    monkeypatch.setattr(doctor_tool, "_run_code", lambda code: (0, "works"))
    status, text = run_doctor(tmp_path)
    assert status == 1
    assert "1.9.2, must be 1.8.0" in text
    assert "requirements/cpu.txt" in text


def test_failed_import_is_shown_with_its_error():
    code = "raise OSError('undefined symbol: _ZN5torch')"
    check = doctor_tool._check_code("fbgemm_gpu", code, "Reinstall.")
    assert (check.state, check.result) == ("fail", "OSError: undefined symbol: _ZN5torch")
    crash = doctor_tool._check_code("crash", "import os; os.abort()", "Reinstall.")
    assert (crash.state, crash.result) == ("fail", "died with signal 6")


def test_full_disk_fails(monkeypatch, tmp_path):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(doctor_tool.shutil, "disk_usage", lambda place: usage)
    assert doctor_tool._check_disk(tmp_path / "not" / "there").state == "fail"
