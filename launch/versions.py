"""Are torch, fbgemm and torchrec the three that belong together? Asked without importing them."""

import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

TORCH, FBGEMM, TORCHREC = "2.13.0", "1.8.0", "1.8.0"
"""fbgemm 1.X is compiled against torch 2.(X+5): another pair dies at import, undefined symbol."""

CPU_LINES = (
    "pip install -r requirements/cpu.txt",
    f"pip install torch=={TORCH} fbgemm-gpu-cpu=={FBGEMM} tensordict torchmetrics==1.0.3 "
    f"pyre-extensions tqdm && pip install --no-deps torchrec=={TORCHREC}",
)
GPU_LINES = (
    "pip install -r requirements/gpu.txt",
    f"pip install torch=={TORCH} fbgemm-gpu=={FBGEMM} torchrec=={TORCHREC}",
)


@dataclass(frozen=True)
class Problem:
    """What is wrong with an installed package, and the way out."""

    package: str
    found: str
    must: str
    fix: str

    @property
    def sentence(self) -> str:
        """What must hold, what was found, what to do."""
        return f"{self.package} must be {self.must}; found {self.found}. {self.fix}"


def installed(package: str) -> str | None:
    """Version of a distribution, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed_versions() -> dict[str, str | None]:
    """Versions that a run folder keeps: Python, msrec, and all that decides its numbers."""
    packages = ["msrec", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "torchx"]
    packages += ["transformers", "numpy", "pyarrow", "polars"]
    return {"python": platform.python_version()} | {name: installed(name) for name in packages}


def is_cpu_build() -> bool:
    """Whether this installation is the one for machines without CUDA.

    The marks of a CPU set are `torch 2.13.0+cpu`, the `fbgemm-gpu` shim, or `fbgemm-gpu-cpu`
    without any `fbgemm-gpu`. `fbgemm-gpu-cpu` also runs with a CUDA torch, on the CPU.
    """
    return (
        "+cpu" in (installed("torch") or "")
        or "shim" in (installed("fbgemm-gpu") or "")
        or (installed("fbgemm-gpu") is None and installed("fbgemm-gpu-cpu") is not None)
    )


def has_nvidia_driver() -> bool:
    """Whether CUDA can work here at all."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def check_versions() -> list[Problem]:
    """Every package of the triple that is missing, of another version or of the wrong variant.

    Takes a millisecond and works where `import torchrec` would die. The right CUDA set passes on
    a machine without a GPU too (a login node); a wrong one there is told to become the CPU set.
    """
    cpu = is_cpu_build()
    problems = _problems(cpu)
    return _problems(True) if problems and not cpu and not has_nvidia_driver() else problems


def require_versions() -> None:
    """Stop a command before it imports a triple that would crash.

    Raises:
        ValueError: the packages do not belong together; one sentence with the install line.
    """
    problems = check_versions()
    if problems:
        what = "; ".join(f"{p.package} must be {p.must}, found {p.found}" for p in problems)
        raise ValueError(f"{what}. {problems[-1].fix}")


def _problems(cpu: bool) -> list[Problem]:
    fix = _fix(CPU_LINES if cpu else GPU_LINES)
    fbgemm = "fbgemm-gpu-cpu" if cpu else "fbgemm-gpu"
    pins = (("torch", TORCH), (fbgemm, FBGEMM), ("torchrec", TORCHREC))
    problems = [
        Problem(package, found or "nothing", must, fix)
        for package, must in pins
        if not _is(found := installed(package), must)
    ]
    return problems + _other_build(cpu)


def _other_build(cpu: bool) -> list[Problem]:
    """Both builds of fbgemm write into one folder, and the last one installed wins."""
    other = installed("fbgemm-gpu" if cpu else "fbgemm-gpu-cpu")
    if other is None or "shim" in other:
        return []
    remove = "Run: pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu. Then run: "
    if cpu:
        must = "absent or the shim of requirements/"
        return [Problem("fbgemm-gpu", other, must, _fix(CPU_LINES, remove))]
    must = "absent beside fbgemm-gpu"
    return [Problem("fbgemm-gpu-cpu", other, must, _fix(GPU_LINES, remove))]


def _is(found: str | None, must: str) -> bool:
    """Whether a version is the pinned one, whatever its local part (+cpu, +cu130)."""
    return found is not None and found.split("+")[0] == must


def _fix(lines: tuple[str, str], start: str = "Run: ") -> str:
    checkout, wheel = lines
    return f"{start}{checkout} (in a checkout), or: {wheel}"
