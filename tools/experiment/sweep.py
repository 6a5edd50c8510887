"""Sweep files: the data sets, models, arms and seeds of an experiment or a benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from msrec.data.io.paths import refuse_secrets
from msrec.data.io.validation import StrictModel, first_error
from msrec.data.io.yaml_files import read_yaml
from msrec.data.schema import Split

BARE = "bare"
BOTH = "both"
_META = ["meta.user=true", "meta.scenario=true"]
ARMS: dict[str, list[str]] = {
    BARE: [],
    "user": ["meta.user=true"],
    "scenario": ["meta.scenario=true"],
    BOTH: _META,
    "item": ["meta.item=true"],
    "shuffled": [*_META, "llm.control=shuffled"],
    "random": [*_META, "llm.control=random"],
    "learned": [*_META, "llm.control=learned"],
    "concat": ["llm_feature.kind=concat", "llm_feature.dim=32"],
    "match": ["llm_feature.kind=match"],
}
"""Arms that a sweep can name without their overrides."""
CONTROLS = ("shuffled", "random", "learned", "concat")
"""Arms that `both` is compared with, in addition to the reference."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Name of a data set, model or arm, and of its folder."""
Overrides = dict[Name, list[str]]
"""Name of a model or an arm -> `key.sub=value` overrides of a run's config."""


class PublishedAUC(StrictModel):
    """Published test AUC of some models, for comparison."""

    source: str
    auc: dict[str, float]


class SweepDataset(StrictModel):
    """A data set of a sweep."""

    config: Path
    """YAML file of a run."""
    options: list[str] = []
    """Overrides of all runs on the data set."""
    backbones: Overrides = {}
    """Models; by default those of the sweep. A model's name is also its `backbone.name`, unless its
    overrides have another one."""
    convert: list[str] = []
    """Arguments of `msrec convert`: the source, a folder below the sweep's `raw`, and options. The
    dataset folder is then OUT/data/NAME and the knowledge store OUT/store/NAME."""
    title: str = ""
    """Heading on the benchmark page."""
    about: str = ""
    """Description on the benchmark page, in Markdown."""
    published: PublishedAUC | None = None


class Sweep(StrictModel):
    """Trainings of data sets x models x arms x seeds, with optional tuning and timing."""

    out: Path
    """Folder of the trainings and the reports."""
    raw: Path = Path()
    """Folder of the raw data, for data sets with `convert`."""
    seeds: int = Field(5, ge=1)
    trials: int = Field(0, ge=0)
    """Trainings that tune each model and arm on validation before its seeds are trained."""
    timed_steps: int = Field(0, ge=0)
    """Steps of a further training that measures the speed of each model and arm; 0 for none."""
    split: Split = "test"
    """Split to evaluate the seeds on; `valid` to choose between arms."""
    arms: list[str] | Overrides = list(ARMS)
    """Names in `ARMS`, or arm -> overrides. With no arms, `reference` must be empty."""
    reference: str = BARE
    """Arm that the others are compared with."""
    controls: dict[Name, list[Name]] = {}
    """Arm -> further arms to compare it with. `both` is always compared with `CONTROLS`."""
    backbones: Overrides = {}
    """Models of the data sets that name none."""
    about: str = ""
    """Introduction of the benchmark page, in Markdown."""
    datasets: dict[Name, SweepDataset]

    @property
    def arm_options(self) -> Overrides:
        """Arm -> overrides; without arms, one with an empty name."""
        if isinstance(self.arms, dict):
            return self.arms or {"": []}
        return {name: ARMS[name] for name in self.arms} or {"": []}

    @property
    def comparisons(self) -> list[tuple[str, str]]:
        """Pairs of an arm and the arm it is compared with: first the reference, then controls."""
        pairs = [(arm, self.reference) for arm in self.arms if arm != self.reference]
        if BOTH in self.arms:
            pairs += [(BOTH, control) for control in CONTROLS if control in self.arms]
        pairs += [(arm, other) for arm, others in self.controls.items() for other in others]
        return list(dict.fromkeys(pairs))

    def models(self, dataset: str) -> Overrides:
        """Returns the models of a data set."""
        return self.datasets[dataset].backbones or self.backbones

    def subset(self, datasets: Sequence[str], models: Sequence[str]) -> "Sweep":
        """Returns the sweep with some data sets and some of its models; all without names.

        Raises:
            ValueError: a name is unknown.
        """
        changes = {
            "datasets": _subset("benchmark", self.datasets, datasets),
            "backbones": _subset("model", self.backbones, models),
        }
        return self.model_copy(update=changes)


def load_sweep(path: Path) -> Sweep:
    """Reads and checks a sweep file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a sweep; names the key.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the sweep {path} must exist; it does not.")
    tree = read_yaml(path)
    refuse_secrets(str(path), tree)
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}.") from None
    _check_names(sweep, path)
    return sweep


def _check_names(sweep: Sweep, path: Path) -> None:
    for arm in sweep.arms:
        if isinstance(sweep.arms, list) and arm not in ARMS:
            raise ValueError(
                f"{path}: an arm must be one of {', '.join(ARMS)}, or have its overrides; "
                f"got {arm!r}."
            )
    arms = ", ".join(sweep.arms)
    if sweep.reference not in sweep.arm_options:
        raise ValueError(
            f"{path}: reference must be one of the arms {arms}; got {sweep.reference!r}."
        )
    for arm in [*sweep.controls, *(name for others in sweep.controls.values() for name in others)]:
        if arm not in sweep.arms:
            raise ValueError(f"{path}: controls must name arms, {arms}; got {arm!r}.")
    for name in sweep.datasets:
        if not sweep.models(name):
            raise ValueError(f"{path}: datasets.{name}.backbones must name a model; it names none.")


def _subset(kind: str, known: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    for name in names:
        if name not in known:
            raise ValueError(f"a {kind} must be one of {', '.join(known)}; got {name!r}.")
    return {name: value for name, value in known.items() if not names or name in names}
