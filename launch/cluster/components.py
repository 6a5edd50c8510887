"""torchx components: `torchx run -s local_cwd msrec.train -j 1x2 -- config=conf.yaml key=value`.

torchx makes the command line of a component from its signature, so each component repeats the
options with their defaults.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional

import torchx
from torchx import specs
from torchx.specs.finder import ComponentValidationException

from msrec.data.io.paths import refuse_secrets
from msrec.launch.cluster.resources import node_resource
from msrec.launch.cluster.torchrun_role import RENDEZVOUS_PORT, LaunchOptions, torchrun_app
from msrec.launch.config.run_config import RunConfig, load_config

OPTIONS_HELP = """
    Args:
        args: arguments of the msrec command, behind `--`
        j: nodes x ranks per node
        image: container image, or a folder
        h: a named resource, which replaces cpu, gpu and memMB
        cpu: cores per node
        gpu: GPUs per node
        memMB: memory per node in MiB
        max_restarts: restarts of crashed ranks
        max_retries: retries of the whole job
        rdzv_port: port where the nodes meet
        python: Python interpreter
        threads: threads per rank; 0 is 1 without GPUs, else the share of the cores up to 16
"""


def _component(function: Callable[..., specs.AppDef]) -> Callable[..., specs.AppDef]:
    """Adds the help of the options, and makes torchx print a user's mistake without a stack."""

    @functools.wraps(function)
    def component(*args: str, **options: object) -> specs.AppDef:
        try:
            return function(*args, **options)
        except (ValueError, OSError) as error:
            raise ComponentValidationException(str(error)) from None

    component.__doc__ = f"{function.__doc__}\n{OPTIONS_HELP}"
    return component


@_component
def train(
    *args: str,
    j: str = "1x2",
    image: str = torchx.IMAGE,
    h: Optional[str] = None,  # noqa: UP045
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,  # noqa: N803
    max_restarts: int = 1,
    max_retries: int = 0,
    rdzv_port: int = RENDEZVOUS_PORT,
    python: str = "",
) -> specs.AppDef:
    """Trains a run: `-- config=conf.yaml [key.sub=value ...]`; the same run_id resumes it."""
    resource = node_resource(cpu, gpu, memMB, h)
    options = LaunchOptions(j, image, resource, max_restarts, max_retries, rdzv_port, python)
    arguments = _arguments(args, "config")
    config = _load_config(arguments, image)
    log_dir = None if config is None else str(config.run_dir / "logs")
    return torchrun_app("train", arguments, options, log_dir)


@_component
def evaluate(
    *args: str,
    j: str = "1x2",
    image: str = torchx.IMAGE,
    h: Optional[str] = None,  # noqa: UP045
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,  # noqa: N803
    max_retries: int = 0,
    rdzv_port: int = RENDEZVOUS_PORT,
    python: str = "",
) -> specs.AppDef:
    """Scores a split with a run's best checkpoint: `-- run=runs/demo [split=test]`."""
    resource = node_resource(cpu, gpu, memMB, h)
    options = LaunchOptions(j, image, resource, 0, max_retries, rdzv_port, python)
    return torchrun_app("evaluate", _arguments(args, "run"), options)


@_component
def predict(
    *args: str,
    j: str = "1x2",
    image: str = torchx.IMAGE,
    h: Optional[str] = None,  # noqa: UP045
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,  # noqa: N803
    max_restarts: int = 1,
    max_retries: int = 0,
    rdzv_port: int = RENDEZVOUS_PORT,
    python: str = "",
) -> specs.AppDef:
    """Scores rows of Parquet files: `-- run=runs/demo data=new out=scores [columns=a,b]`."""
    resource = node_resource(cpu, gpu, memMB, h)
    options = LaunchOptions(j, image, resource, max_restarts, max_retries, rdzv_port, python)
    return torchrun_app("predict", _arguments(args, "run"), options)


@_component
def plan(
    *args: str,
    image: str = torchx.IMAGE,
    h: Optional[str] = None,  # noqa: UP045
    cpu: int = 2,
    memMB: int = 8192,  # noqa: N803
    python: str = "",
) -> specs.AppDef:
    """Plans where tables go: `-- config=conf.yaml [key=value] [--nodes=8]`.

    Runs as one process on a CPU node. The file may also be a list of tables.
    """
    options = LaunchOptions("1x1", image, node_resource(cpu, 0, memMB, h), python=python)
    return torchrun_app("plan", _arguments(args, "config"), options)


@_component
def encode(
    *args: str,
    j: str = "1x2",
    image: str = torchx.IMAGE,
    h: Optional[str] = None,  # noqa: UP045
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,  # noqa: N803
    max_restarts: int = 1,
    max_retries: int = 0,
    rdzv_port: int = RENDEZVOUS_PORT,
    python: str = "",
    threads: int = 0,
) -> specs.AppDef:
    """Encodes users and scenarios with the LLM: `-- config=conf.yaml [llm.key=value ...]`."""
    resource = node_resource(cpu, gpu, memMB, h)
    options = LaunchOptions(
        j, image, resource, max_restarts, max_retries, rdzv_port, python, threads or None
    )
    arguments = _arguments(args, "config")
    _load_config(arguments, image)
    return torchrun_app("encode", arguments, options)


def _arguments(args: Sequence[str], first: str) -> list[str]:
    """Returns the command's arguments: the value of `first=VALUE`, then the others as given."""
    refuse_secrets("an argument", list(args))  # a scheduler keeps the command line
    given = [arg for arg in args if arg.startswith(f"{first}=")]
    if len(given) != 1:
        raise ValueError(f"give {first}=... once after `--`; got {' '.join(args) or 'nothing'}.")
    return [given[0].partition("=")[2], *(arg for arg in args if arg not in given)]


def _load_config(arguments: Sequence[str], image: str) -> Optional[RunConfig]:  # noqa: UP045
    """Loads the config, so that a mistake in it is found before anything is launched.

    Returns None for a file that is not on this machine but may be in the image.
    """
    file, overrides = arguments[0], [arg for arg in arguments[1:] if not arg.startswith("--")]
    if image != torchx.IMAGE and not Path(file).is_file():
        return None
    return load_config(file, overrides)
