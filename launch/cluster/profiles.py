"""Site profiles: a name for a scheduler, its options and the size of a node."""

from pathlib import Path
from typing import Any, NamedTuple, Self

import torchx
from pydantic import Field, ValidationError, field_validator, model_validator
from torchx.schedulers import get_scheduler_factories
from torchx.specs import runopts

from msrec.data.io.paths import refuse_secrets
from msrec.data.io.validation import StrictModel, first_error
from msrec.data.io.yaml_files import read_yaml
from msrec.launch.cluster.resources import closest_names, node_resource
from msrec.launch.cluster.schedulers.options import refuse_ignored
from msrec.launch.cluster.submitted import KUBERAY
from msrec.launch.cluster.torchrun_role import (
    RENDEZVOUS_PORT,
    RETRY_POLICIES,
    LaunchOptions,
)
from msrec.launch.config.run_config import RunConfig

PROFILES_FILE = Path(__file__).with_name("profiles.yaml")
SUBMIT_FOLDER_SCHEDULERS = ("local_cwd", "slurm")
"""Schedulers that start a job in the folder from which it was submitted."""


OF_TORCHRUN = {"max_restarts", "port"}
"""Keys of a profile that are only for jobs with ranks."""


class Profile(StrictModel):
    """Scheduler of a job, its options and the size of a node."""

    scheduler: str
    cfg: dict[str, Any] = {}
    """Options of the scheduler: `torchx runopts SCHEDULER`."""
    image: str = torchx.IMAGE
    """Container image, or the folder of the code for local and Slurm jobs."""
    cpu: int = Field(2, ge=1)
    gpu: int = Field(0, ge=0)
    mem_mib: int = Field(8192, ge=1)
    """Memory of a node in MiB."""
    resource: str | None = None
    """A named resource, which replaces cpu, gpu and mem_mib; see resources.py."""
    python: str = ""
    max_restarts: int = Field(1, ge=0)
    """Restarts of crashed ranks by torchrun."""
    max_retries: int = Field(0, ge=0)
    """Retries of the job by the scheduler."""
    retry_policy: str = RETRY_POLICIES[0]
    """APPLICATION if a retry starts the whole job again, REPLICA if only the lost node."""
    env: dict[str, str] = {}
    """Environment variables, over the defaults of resources.py; an empty value leaves one out."""
    mounts: list[str] = []
    """Mounts of a container, each type=bind|volume|device,src=SOURCE,dst=/PATH[,readonly]."""
    port: int = Field(RENDEZVOUS_PORT, ge=1024, lt=65536)

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
        node_resource(1, 0, 1, name)
        return name

    @field_validator("env", mode="before")
    @classmethod
    def _texts(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, value in values.items():
            if type(value) not in (str, int):  # true, 1.10 and null have another form as text
                raise ValueError(
                    f"must have texts or whole numbers; got {name}: {value!r}. Put it in quotes"
                )
        return {str(name): str(value) for name, value in values.items()}

    @model_validator(mode="after")
    def _no_ignored_options(self) -> Self:
        refuse_ignored(self.scheduler, mounts=bool(self.mounts), retry_policy=self.retry_policy)
        if self.scheduler == KUBERAY and (names := OF_TORCHRUN & self.model_fields_set):
            raise ValueError(
                f"{', '.join(sorted(names))} must be left out for {KUBERAY}, which starts no ranks"
            )
        self.launch_options("1x1")  # checks the others
        return self

    def launch_options(self, nodes_and_ranks: str) -> LaunchOptions:
        """Returns the options for torchrun.

        Raises:
            ValueError: `nodes_and_ranks` is not like 2x8.
        """
        node = node_resource(self.cpu, self.gpu, self.mem_mib, self.resource)
        return LaunchOptions(
            nodes_and_ranks=nodes_and_ranks,
            image=self.image,
            resource=node,
            max_restarts=self.max_restarts,
            max_retries=self.max_retries,
            port=self.port,
            python=self.python,
            env=self.env,
            mounts=self.mounts,
            retry_policy=self.retry_policy,
        )

    def scheduler_options(self, known: runopts) -> dict[str, Any]:
        """Returns `cfg` for torchx, which takes no number for a text such as `time: 30`.

        Args:
            known: options of the scheduler. torchx would ignore others.

        Raises:
            ValueError: there is an unknown key. Names the known ones near it.
        """
        values = dict(self.cfg)
        for name, value in values.items():
            option = known.get(name)
            if option is None:
                near = closest_names(name, [name for name, _ in known])
                raise ValueError(
                    f"cfg must hold options of {self.scheduler}; got {name!r}, near it are {near}."
                )
            if option.opt_type is str and type(value) is int:
                values[name] = str(value)
        return values

    def refuse_relative_paths(self, config: RunConfig) -> None:
        """Refuses relative paths in a config if the job starts in another folder.

        Raises:
            ValueError: there is such a path.
        """
        paths = {"dataset": config.dataset, "run_root": config.run_root, "plan": config.plan}
        paths |= {"init_from": config.init_from, "llm.store": config.llm.store}
        for key, path in paths.items():
            is_relative = isinstance(path, Path) and not path.is_absolute()
            if is_relative and self.scheduler not in SUBMIT_FOLDER_SCHEDULERS:
                raise ValueError(
                    f"{key} must be an absolute path, since {self.scheduler} starts a job in "
                    f"another folder; got {str(path)!r}."
                )


class Target(NamedTuple):
    """Destination of a job: a profile with its name, and nodes x ranks per node, such as 2x8."""

    name: str
    profile: Profile
    nodes_and_ranks: str


def load_profile(name: str, file: Path | None = None) -> Profile:
    """Finds a profile by name.

    Args:
        name: key of an entry.
        file: YAML file whose entries take precedence over those of profiles.yaml here.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: there is no such entry (names the known ones near it), or it is wrong.
    """
    entries: dict[str, tuple[Path, Any]] = {}
    for path in (PROFILES_FILE, *([file] if file else [])):
        if not path.is_file():
            raise FileNotFoundError(f"the profiles file {path} must exist; it does not.")
        values = read_yaml(path)
        refuse_secrets(str(path), values)
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold profiles by name; it holds {values!r:.40}.")
        entries |= {str(key): (path, entry) for key, entry in values.items()}
    if name not in entries:
        raise ValueError(
            f"--on must name a profile; got {name!r}, near it are {closest_names(name, entries)}. "
            "Put other profiles into a file for --profiles."
        )
    path, entry = entries[name]
    try:
        profile = Profile.model_validate(entry)
    except ValidationError as error:
        fault = f"{name}.{first_error(error)}".replace(f"{name}.file: ", f"{name}: ")
        raise ValueError(f"{path}: {fault}.") from None
    sizes = sorted({"cpu", "gpu", "mem_mib"} & profile.model_fields_set)
    if profile.resource and sizes:
        raise ValueError(f"{path}: {name}.resource must be given without {', '.join(sizes)}.")
    return profile
