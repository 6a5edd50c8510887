"""Scheduler options that are lists of texts such as `CLAIM:/PATH`, and a check of the image."""

import re
from collections.abc import Mapping
from typing import Any, List, NamedTuple  # noqa: UP035

import torchx
from torchx.specs import AppDef, runopts
from torchx.specs.finder import ComponentValidationException

WITH_MOUNTS = ("kubernetes", "kuberay", "aws_batch", "local_docker")
WITH_REPLICA_RETRIES = ("kubernetes",)
"""Schedulers that can start one node of a job again."""
WORKERS_PER_NODE = "workers_per_node"
"""Metadata of a role whose nodes are those of a Ray cluster: number of tasks at a time on each."""
Parts = dict[str, list[tuple[str, ...]]]
"""Option -> the parts of each of its texts."""


class ListOption(NamedTuple):
    """An option that is a list of texts.

    Attributes:
        form: form of each text, such as CLAIM:/PATH.
        pattern: regular expression for a text; its groups are the parts.
        purpose: meaning of the list, for the help.
    """

    form: str
    pattern: str
    purpose: str


class ListOptions(dict[str, ListOption]):
    """The list options of a scheduler by name.

    Example:
        >>> options = ListOptions(volumes=ListOption("CLAIM:/PATH", "([a-z]+):(/.+)", "claims"))
        >>> options.split({"volumes": ["data:/d"]})
        {'volumes': [('data', '/d')]}
    """

    def add_to(self, options: runopts) -> runopts:
        """Adds the options to those of torchx, whose command line takes `option=a;b`."""
        for name, option in self.items():
            text = f"{option.purpose}, each {option.form}"
            options.add(name, type_=List[str], help=text)  # noqa: UP006  # torchx compares types
        return options

    def split(self, cfg: Mapping[str, Any]) -> Parts:
        """Splits the texts of all options into their parts.

        Raises:
            ComponentValidationException: a text has another form. torchx prints only the message.
        """
        return {name: [self._split(name, text) for text in cfg.get(name) or []] for name in self}

    def _split(self, name: str, text: str) -> tuple[str, ...]:
        match = re.fullmatch(self[name].pattern, text)
        if match is None:
            raise ComponentValidationException(
                f"each of the option {name} must be {self[name].form}; got {text!r}."
            )
        return match.groups()


def require_image(app: AppDef, scheduler: str) -> None:
    """Refuses a job that would start in torchx's own image, which has no msrec.

    Raises:
        ComponentValidationException: no image was given. torchx prints only the message.
    """
    if app.roles[0].image == torchx.IMAGE:
        raise ComponentValidationException(
            f"{scheduler} needs an image with msrec in it; got none. Give --image NAME, or "
            "image: NAME in the profile."
        )


def refuse_ignored(scheduler: str, *, mounts: bool, retry_policy: str) -> None:
    """Refuses options of a job that torchx accepts everywhere and most schedulers ignore.

    Raises:
        ValueError: the scheduler ignores one that is given.
    """
    for option, is_given, schedulers in (
        ("mounts", mounts, WITH_MOUNTS),
        ("the retry policy REPLICA", retry_policy == "REPLICA", WITH_REPLICA_RETRIES),
    ):
        if is_given and scheduler not in schedulers:
            raise ValueError(
                f"{option} must be for the scheduler {' or '.join(schedulers)}; got {scheduler}, "
                "which ignores it."
            )
