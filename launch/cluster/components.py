"""torchx components: `torchx run -s local_cwd msrec.train -j 1x2 -- config=conf.yaml key=value`."""

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torchx
from torchx import specs
from torchx.specs.finder import ComponentValidationException

from msrec.data.io.paths import refuse_secrets
from msrec.launch.cluster.resources import node_resource
from msrec.launch.cluster.torchrun_role import RENDEZVOUS_PORT, LaunchOptions, torchrun_app
from msrec.launch.config.run_config import RunConfig, load_config


class Option(NamedTuple):
    """An option of the components on torchx's command line: its type, default and help."""

    type: Any
    default: object
    help: str


OPTIONS = {
    "j": Option(str, "1x2", "nodes x ranks per node; 1:2x8 starts with one node and takes two"),
    "image": Option(str, torchx.IMAGE, "container image, or a folder"),
    "name": Option(str, "", "the job's name for the scheduler; empty: the command's"),
    "h": Option(str, "", "a named resource, which replaces cpu, gpu and memMB"),
    "cpu": Option(int, 2, "cores per node"),
    "gpu": Option(int, 0, "GPUs per node"),
    "memMB": Option(int, 8192, "memory per node in MiB"),
    "env": Option(dict[str, str], None, "environment variables: A=1,B=2"),
    "mounts": Option(
        list[str], None, "mounts of a container: type=bind,src=/fsx,dst=/fsx[,readonly]"
    ),
    "max_restarts": Option(int, 1, "restarts of crashed ranks"),
    "max_retries": Option(int, 0, "retries of the job by the scheduler"),
    "retry_policy": Option(
        str, "APPLICATION", "a retry starts the whole job (APPLICATION) or the lost node (REPLICA)"
    ),
    "rdzv_port": Option(int, RENDEZVOUS_PORT, "port where the nodes meet"),
    "python": Option(str, "", "Python interpreter"),
    "threads": Option(
        int, 0, "threads per rank; 0 is 1 without GPUs, else the share of the cores up to 16"
    ),
}
"""Options of the components by torchx's names, which are those of its own `dist.ddp`."""
Component = Callable[..., specs.AppDef]


def _component(*left_out: str) -> Callable[[Component], Component]:
    """Gives a component all `OPTIONS` but some, and makes a user's mistake one sentence.

    torchx makes the command line from the signature and the docstring, so both are completed here.
    """
    options = {name: option for name, option in OPTIONS.items() if name not in left_out}

    def decorator(function: Component) -> Component:
        @functools.wraps(function)
        def component(*args: str, **given: Any) -> specs.AppDef:
            values = {name: option.default for name, option in options.items()} | given
            try:
                return function(*args, **values)
            except (ValueError, OSError) as error:
                # torchx prints only the message of this exception.
                raise ComponentValidationException(str(error)) from None

        args, _ = inspect.signature(function).parameters.values()
        keywords = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=o.default, annotation=o.type
            )
            for name, o in options.items()
        ]
        vars(component)["__signature__"] = inspect.Signature(
            [args, *keywords], return_annotation=specs.AppDef
        )
        lines = [f"        {name}: {option.help}" for name, option in options.items()]
        about = ["    Args:", "        args: arguments of the msrec command, behind `--`", *lines]
        component.__doc__ = "\n".join([f"{function.__doc__}\n", *about])
        return component

    return decorator


@_component("threads")
def train(*args: str, **options: Any) -> specs.AppDef:
    """Trains a run: `-- config=conf.yaml [key.sub=value ...]`; the same run_id resumes it."""
    arguments = _arguments(args, "config")
    config = _load_config(arguments, options["image"])
    log_dir = None if config is None else str(config.run_dir / "logs")
    return torchrun_app("train", arguments, _launch_options(options), log_dir)


@_component("threads", "max_restarts")
def evaluate(*args: str, **options: Any) -> specs.AppDef:
    """Scores a split with a run's best checkpoint: `-- run=runs/demo [split=test]`."""
    return torchrun_app("evaluate", _arguments(args, "run"), _launch_options(options))


@_component("threads")
def predict(*args: str, **options: Any) -> specs.AppDef:
    """Scores rows of Parquet files: `-- run=runs/demo data=new out=scores [columns=a,b]`."""
    return torchrun_app("predict", _arguments(args, "run"), _launch_options(options))


@_component("j", "gpu", "max_restarts", "rdzv_port", "threads")
def plan(*args: str, **options: Any) -> specs.AppDef:
    """Plans where tables go: `-- config=conf.yaml [key=value] [--nodes=8]`.

    Runs as one process on a CPU node. The file may also be a list of tables.
    """
    return torchrun_app("plan", _arguments(args, "config"), _launch_options({"j": "1x1"} | options))


@_component("j", "max_restarts", "rdzv_port", "threads")
def experiment(*args: str, **options: Any) -> specs.AppDef:
    """Runs a sweep on one node: `-- sweep=sweep.yaml [--jobs=2]`; started again, it goes on.

    Each training has one rank.
    """
    one = {"j": "1x1"} | options
    return torchrun_app("experiment", _arguments(args, "sweep"), _launch_options(one))


@_component("gpu", "threads")
def convert(*args: str, **options: Any) -> specs.AppDef:
    """Converts raw tables: `-- raw=RAW out=data/app [--split=time]`; started again, it goes on.

    All nodes must see both folders under these paths.
    """
    folders = _arguments(args, "raw", "out")
    words = ["tables", *folders[:2], "--engine=ranks", *folders[2:]]
    return torchrun_app("convert", words, _launch_options(options))


@_component()
def encode(*args: str, **options: Any) -> specs.AppDef:
    """Encodes users and scenarios with the LLM: `-- config=conf.yaml [llm.key=value ...]`."""
    arguments = _arguments(args, "config")
    _load_config(arguments, options["image"])
    return torchrun_app("encode", arguments, _launch_options(options))


def _launch_options(options: dict[str, Any]) -> LaunchOptions:
    """Returns the options in the names of `LaunchOptions`; `plan` has not all of them."""
    values = {name: value for name, value in options.items() if value is not None}
    cpu, gpu, mem_mib = values.pop("cpu"), values.pop("gpu", 0), values.pop("memMB")
    return LaunchOptions(
        nodes_and_ranks=values.pop("j"),
        resource=node_resource(cpu, gpu, mem_mib, values.pop("h")),
        port=values.pop("rdzv_port", RENDEZVOUS_PORT),
        threads=values.pop("threads", 0) or None,
        **values,
    )


def _arguments(args: Sequence[str], *first: str) -> list[str]:
    """Returns the command's arguments: the values of `first=VALUE`, then the others as given."""
    refuse_secrets("an argument", list(args))  # a scheduler keeps the command line
    values, others = [], list(args)
    for name in first:
        given = [arg for arg in args if arg.startswith(f"{name}=")]
        if len(given) != 1:
            raise ValueError(f"give {name}=... once after `--`; got {' '.join(args) or 'nothing'}.")
        values.append(given[0].partition("=")[2])
        others.remove(given[0])
    return [*values, *others]


def _load_config(arguments: Sequence[str], image: str) -> RunConfig | None:
    """Loads the config, so that a mistake in it is found before anything is launched.

    Returns None for a file that is not on this machine but may be in the image.
    """
    file, overrides = arguments[0], [arg for arg in arguments[1:] if not arg.startswith("--")]
    if image != torchx.IMAGE and not Path(file).is_file():
        return None
    return load_config(file, overrides)
