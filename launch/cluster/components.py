"""torchx components: `torchx run -s local_cwd msrec.train -j 1x2 -- config=conf.yaml key=value`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import torchx
from torchx import specs
from torchx.specs.finder import ComponentValidationException

from msrec.data.io.paths import refuse_secrets
from msrec.launch.cluster.resources import node
from msrec.launch.cluster.torchrun_role import torchrun_app
from msrec.launch.config import RunConfig, load_config


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
    rdzv_port: int = 29500,
    python: str = "",
) -> specs.AppDef:
    """Train a run: `-- config=conf.yaml [key.sub=value ...]`; the same run_id resumes.

    Args:
        args: config=FILE and overrides
        j: nodes x ranks per node
        image: container image, or a folder
        h: a named resource, instead of cpu, gpu and memMB
        cpu: cores per node
        gpu: GPUs per node
        memMB: MiB per node
        max_restarts: restarts of crashed ranks
        max_retries: retries of the whole job
        rdzv_port: rendezvous port
        python: interpreter
    """
    resource = _node(cpu, gpu, memMB, h)
    arguments, config = _config_arguments(args, image)
    return torchrun_app(
        "train",
        arguments,
        j=j,
        image=image,
        resource=resource,
        max_restarts=max_restarts,
        max_retries=max_retries,
        port=rdzv_port,
        python=python,
        log_dir=None if config is None else str(config.run_dir / "logs"),
    )


def evaluate(
    *args: str,
    j: str = "1x2",
    image: str = torchx.IMAGE,
    h: Optional[str] = None,  # noqa: UP045
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 8192,  # noqa: N803
    max_retries: int = 0,
    rdzv_port: int = 29500,
    python: str = "",
) -> specs.AppDef:
    """Score a split with a run's best checkpoint: `-- run=runs/demo [split=test]`.

    Args:
        args: run=FOLDER and split=NAME
        j: nodes x ranks per node
        image: container image, or a folder
        h: a named resource, instead of cpu, gpu and memMB
        cpu: cores per node
        gpu: GPUs per node
        memMB: MiB per node
        max_retries: retries of the whole job
        rdzv_port: rendezvous port
        python: interpreter
    """
    resource = _node(cpu, gpu, memMB, h)
    return torchrun_app(
        "evaluate",
        _arguments(args, "run"),
        j=j,
        image=image,
        resource=resource,
        max_restarts=0,
        max_retries=max_retries,
        port=rdzv_port,
        python=python,
    )


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
    rdzv_port: int = 29500,
    python: str = "",
) -> specs.AppDef:
    """Score rows of Parquet files with a run: `-- run=runs/demo data=new out=scores [columns=a,b]`.

    Args:
        args: run=FOLDER, data=FILES, out=FOLDER and columns=NAMES
        j: nodes x ranks per node
        image: container image, or a folder
        h: a named resource, instead of cpu, gpu and memMB
        cpu: cores per node
        gpu: GPUs per node
        memMB: MiB per node
        max_restarts: restarts of crashed ranks
        max_retries: retries of the whole job
        rdzv_port: rendezvous port
        python: interpreter
    """
    resource = _node(cpu, gpu, memMB, h)
    return torchrun_app(
        "predict",
        _arguments(args, "run"),
        j=j,
        image=image,
        resource=resource,
        max_restarts=max_restarts,
        max_retries=max_retries,
        port=rdzv_port,
        python=python,
    )


def plan(
    *args: str,
    image: str = torchx.IMAGE,
    h: Optional[str] = None,  # noqa: UP045
    cpu: int = 2,
    memMB: int = 8192,  # noqa: N803
    python: str = "",
) -> specs.AppDef:
    """Plan where tables go, on one CPU node: `-- config=conf.yaml [key=value] [--nodes=8]`.

    Args:
        args: config=FILE, which may be a list of tables too, overrides, and options of `msrec plan`
        image: container image, or a folder
        h: a named resource, instead of cpu and memMB
        cpu: cores
        memMB: MiB
        python: interpreter
    """
    return torchrun_app(
        "plan",
        _arguments(args, "config"),
        j="1x1",
        image=image,
        resource=_node(cpu, 0, memMB, h),
        max_restarts=0,
        max_retries=0,
        port=29500,
        python=python,
    )


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
    rdzv_port: int = 29500,
    python: str = "",
    threads: int = 1,
) -> specs.AppDef:
    """Encode users and scenarios with the frozen LLM: `-- config=conf.yaml [llm.key=value ...]`.

    Args:
        args: config=FILE and overrides
        j: nodes x ranks per node
        image: container image, or a folder
        h: a named resource, instead of cpu, gpu and memMB
        cpu: cores per node
        gpu: GPUs per node
        memMB: MiB per node
        max_restarts: restarts of crashed ranks
        max_retries: retries of the whole job
        rdzv_port: rendezvous port
        python: interpreter
        threads: threads per rank
    """
    resource = _node(cpu, gpu, memMB, h)
    return torchrun_app(
        "encode",
        _config_arguments(args, image)[0],
        j=j,
        image=image,
        resource=resource,
        max_restarts=max_restarts,
        max_retries=max_retries,
        port=rdzv_port,
        python=python,
        threads=threads,
    )


def _node(
    cpu: int,
    gpu: int,
    mem_mib: int,
    name: Optional[str],  # noqa: UP045
) -> specs.Resource:
    """As `node`, its mistake in the form that torchx shows without a stack."""
    try:
        return node(cpu, gpu, mem_mib, name)
    except ValueError as error:
        raise ComponentValidationException(str(error)) from None


def _arguments(args: Sequence[str], first: str) -> list[str]:
    """`first=VALUE` becomes the command's positional argument, the rest stays `key=value`.

    Raises:
        ComponentValidationException: it is not given; torchx shows its text and no stack.
    """
    given = [arg for arg in args if arg.startswith(f"{first}=")]
    if len(given) != 1:
        raise ComponentValidationException(
            f"give {first}=... once after `--`; got {' '.join(args) or 'nothing'}."
        )
    return [given[0].partition("=")[2], *(arg for arg in args if arg not in given)]


def _config_arguments(args: Sequence[str], image: str) -> tuple[list[str], Optional[RunConfig]]:  # noqa: UP045
    """As `_arguments` of `config=`, the config checked here, before anything is launched.

    A file that is not on this machine is left to the ranks when an image may hold it; no config is
    returned then.
    """
    config = None
    arguments = _arguments(args, "config")
    file, overrides = arguments[0], [arg for arg in arguments[1:] if not arg.startswith("--")]
    try:
        refuse_secrets("an override", arguments)  # a scheduler keeps the command line
        if image == torchx.IMAGE or Path(file).is_file():
            config = load_config(file, overrides)
    except (ValueError, OSError) as error:
        raise ComponentValidationException(str(error)) from None
    return arguments, config
