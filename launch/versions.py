"""Checks, without importing them, that torch, fbgemm and torchrec are builds that fit together."""

import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

TORCH, FBGEMM, TORCHREC = "2.13.0", "1.8.0", "1.8.0"
"""fbgemm 1.X is compiled against torch 2.(X+5). Any other pair fails at import, with an undefined
symbol."""
CPU_LINES = (
    "pip install -r requirements/cpu.txt",
    f"pip install torch=={TORCH} fbgemm-gpu-cpu=={FBGEMM} tensordict torchmetrics==1.0.3 "
    f"pyre-extensions tqdm && pip install --no-deps torchrec=={TORCHREC}",
)
"""Install commands for machines without CUDA: in a checkout, elsewhere."""
GPU_LINES = (
    "pip install -r requirements/gpu.txt",
    f"pip install torch=={TORCH} fbgemm-gpu=={FBGEMM} torchrec=={TORCHREC}",
)
TO_GPU = (
    f"pip uninstall -y torch fbgemm-gpu fbgemm-gpu-cpu && {GPU_LINES[0]} (in a checkout), "
    f"or there: {GPU_LINES[1]}"
)
"""Way from a CPU installation to a CUDA one. pip takes `torch 2.13.0+cpu` and the shim for the
pinned versions, so that without the first step it would change nothing."""


@dataclass(frozen=True)
class Problem:
    """A wrong package: the version found, the version it must have, and the way to fix it."""

    package: str
    found: str
    must: str
    fix: str


def installed(package: str) -> str | None:
    """Returns the version of a distribution, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_versions() -> dict[str, str | None]:
    """Returns the versions that a run folder records: Python, msrec, and what affects numbers."""
    packages = ["msrec", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "torchx"]
    packages += ["transformers", "numpy", "pyarrow", "polars"]
    return {"python": platform.python_version()} | {name: installed(name) for name in packages}


def is_cpu_build() -> bool:
    """Whether this installation is the one for machines without CUDA.

    A CPU installation has `torch 2.13.0+cpu`, the `fbgemm-gpu` shim, or `fbgemm-gpu-cpu` without
    any `fbgemm-gpu`. `fbgemm-gpu-cpu` also runs with a CUDA torch, on the CPU.
    """
    fbgemm_gpu = installed("fbgemm-gpu")
    if fbgemm_gpu is None and installed("fbgemm-gpu-cpu") is not None:
        return True
    return "+cpu" in (installed("torch") or "") or "shim" in (fbgemm_gpu or "")


def has_nvidia_driver() -> bool:
    """Whether this machine can run CUDA."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def check_versions() -> list[Problem]:
    """Returns the packages of the triple that are missing, of another version or a wrong build.

    Takes a millisecond and works if `import torchrec` would crash. A correct CUDA installation
    passes on a machine without a GPU too (a login node); for a wrong one there, the fix is the CPU
    installation.
    """
    if is_cpu_build():
        return _problems(for_cpu=True)
    problems = _problems(for_cpu=False)
    return problems if not problems or has_nvidia_driver() else _problems(for_cpu=True)


def require_versions() -> None:
    """Stops a command before it imports packages that would crash.

    Raises:
        ValueError: the packages do not fit together; one sentence with the install command.
    """
    problems = check_versions()
    if problems:
        wrong = "; ".join(f"{p.package} must be {p.must}, found {p.found}" for p in problems)
        raise ValueError(f"{wrong}. {problems[-1].fix}")


def _problems(*, for_cpu: bool) -> list[Problem]:
    in_checkout, elsewhere = CPU_LINES if for_cpu else GPU_LINES
    fix = f"Run: {in_checkout} (in a checkout), or: {elsewhere}"
    fbgemm, other = "fbgemm-gpu", "fbgemm-gpu-cpu"
    must = "absent if fbgemm-gpu is installed"
    if for_cpu:
        fbgemm, other = other, fbgemm
        must = "absent or the shim of requirements/"
    problems = []
    for package, version in (("torch", TORCH), (fbgemm, FBGEMM), ("torchrec", TORCHREC)):
        found = installed(package) or "nothing"
        if found.split("+")[0] != version:  # whatever the local part, +cpu or +cu130
            problems.append(Problem(package, found, version, fix))
    # Both builds of fbgemm write into one folder, where the last one installed wins.
    found = installed(other) or "shim"
    if "shim" not in found:
        uninstall = "Run: pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu. Then run"
        problems.append(Problem(other, found, must, fix.replace("Run", uninstall, 1)))
    return problems
