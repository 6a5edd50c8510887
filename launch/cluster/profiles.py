"""Site profiles: the scheduler, its options and the size of a node by one name."""

import difflib
from pathlib import Path
from typing import Any

import torchx
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torchx import specs
from torchx.schedulers import get_scheduler_factories

from msrec.data.io.validation import first_error, read_yaml
from msrec.launch.cluster.resources import node
from msrec.launch.config import RunConfig

PROFILES_FILE = Path(__file__).with_name("profiles.yaml")
IN_FOLDER = ("local_cwd", "slurm")
"""Schedulers that start a job in the folder from which it was submitted."""


class Profile(BaseModel):
    """Where a job runs.

    Units:
        mem_mib: 2^20 bytes of a node.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheduler: str
    cfg: dict[str, Any] = {}
    image: str = torchx.IMAGE
    """Container image, or the folder for local and Slurm jobs."""
    cpu: int = Field(2, ge=1)
    gpu: int = Field(0, ge=0)
    mem_mib: int = Field(8192, ge=1)
    resource: str | None = None
    """A named resource, in place of cpu, gpu and mem_mib; see launch/cluster/resources.py."""
    python: str = ""
    max_restarts: int = Field(1, ge=0)
    """Of the ranks of a node by torchrun."""
    max_retries: int = Field(0, ge=0)
    """Of the job by the scheduler."""
    port: int = Field(29500, ge=1024, lt=65536)

    @field_validator("scheduler")
    @classmethod
    def _known_scheduler(cls, name: str) -> str:
        known = get_scheduler_factories()
        if name not in known:
            raise ValueError(f"must be one of {', '.join(known)}; got {name!r}")
        return name

    @field_validator("resource")
    @classmethod
    def _known_resource(cls, name: str | None) -> str | None:
        node(1, 0, 1, name)
        return name

    @property
    def node(self) -> specs.Resource:
        """Of torchx."""
        return node(self.cpu, self.gpu, self.mem_mib, self.resource)

    def refuse_unknown_options(self, options: specs.runopts) -> None:
        """Stop where `cfg` has what the scheduler does not take; torchx passes over it.

        Raises:
            ValueError: there is such an option; the known ones near it are named.
        """
        known = [name for name, _ in options]
        for name in self.cfg:
            if name not in known:
                near = difflib.get_close_matches(name, known) or known
                raise ValueError(
                    f"cfg must hold options of {self.scheduler}; got {name!r}, near it are "
                    f"{', '.join(near)}."
                )

    def refuse_relative_paths(self, config: RunConfig) -> None:
        """Stop where a config's path would mean another folder in the job.

        Raises:
            ValueError: there is such a path.
        """
        paths = {"dataset": config.dataset, "run_root": config.run_root, "plan": config.plan}
        paths |= {"init_from": config.init_from, "llm.store": config.llm.store}
        for key, path in paths.items():
            relative = isinstance(path, Path) and not path.is_absolute()
            if relative and self.scheduler not in IN_FOLDER:
                raise ValueError(
                    f"{key} must be an absolute path, since {self.scheduler} starts a job in a "
                    f"folder of its own; got {str(path)!r}."
                )


def load_profile(name: str, file: Path | None = None) -> Profile:
    """Find a profile by name.

    Args:
        name: of an entry.
        file: a YAML file whose entries come before ours.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such entry (the known ones are named), or it is wrong.
    """
    known: dict[str, tuple[Path, Any]] = {}
    for path in (PROFILES_FILE, *([file] if file else [])):
        if not path.is_file():
            raise FileNotFoundError(f"the profiles file {path} must exist; it does not.")
        entries = read_yaml(path)
        if not isinstance(entries, dict):
            raise ValueError(f"{path} must hold profiles by name; it holds {entries!r:.40}.")
        known |= {str(key): (path, value) for key, value in entries.items()}
    if name not in known:
        near = difflib.get_close_matches(name, known) or list(known)
        raise ValueError(
            f"--on must name a profile; got {name!r}, near it are {', '.join(near)}. Another one "
            "goes into a file for --profiles."
        )
    path, values = known[name]
    try:
        profile = Profile.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {name}.{first_error(error)}.") from None
    both = sorted({"cpu", "gpu", "mem_mib"} & profile.model_fields_set)
    if profile.resource and both:
        raise ValueError(f"{path}: {name}.resource must stand without {', '.join(both)}.")
    return profile
