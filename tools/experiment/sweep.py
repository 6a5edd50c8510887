"""`msrec experiment`: the same trainings with and without the LLM's knowledge, and its controls."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from msrec.data.io.paths import refuse_secrets
from msrec.data.io.validation import first_error, read_yaml
from msrec.data.schema import Split
from msrec.launch.config import RunConfig, load_config
from msrec.tools.experiment.training_cells import (
    Cell,
    cell_processes,
    load_cell,
    run_cell,
    run_msrec,
)

BARE = "bare"
_BOTH = ["meta.user=true", "meta.scenario=true"]
ARMS: dict[str, list[str]] = {
    BARE: [],
    "user": ["meta.user=true"],
    "scenario": ["meta.scenario=true"],
    "both": _BOTH,
    "item": ["meta.item=true"],
    "shuffled": [*_BOTH, "llm.control=shuffled"],
    "random": [*_BOTH, "llm.control=random"],
    "learned": [*_BOTH, "llm.control=learned"],
    "concat": ["llm_feature.kind=concat", "llm_feature.dim=32"],
    "match": ["llm_feature.kind=match"],
}
"""The arms that a sweep may call by name. shuffled, random and learned are controls of both."""
CONTROLS = ("shuffled", "random", "learned", "concat")
"""What `both` is compared with, besides the bare backbone."""


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Of a data set, a backbone or an arm: it names a folder."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetSweep(_Part):
    """The runs on one data set."""

    config: Path
    """A run's YAML file."""
    options: list[str] = []
    """Overrides of all its runs."""
    backbones: dict[Name, list[str]]
    """Name -> its own overrides; the name is `backbone.name` unless they say another."""


class Sweep(_Part):
    """A sweep: data sets x backbones x arms x seeds."""

    out: Path
    """Folder of the cells and the reports."""
    seeds: int = Field(5, ge=1)
    split: Split = "test"
    """What the runs are judged on; valid for choosing between settings."""
    arms: list[str] | dict[Name, list[str]] = list(ARMS)
    """Names of known arms, or name -> overrides."""
    reference: str = BARE
    """The arm that the others are compared with."""
    controls: dict[Name, list[Name]] = {}
    """Arm -> further arms that it is compared with; `both` is with those of CONTROLS there are."""
    datasets: dict[Name, DatasetSweep]

    @property
    def arm_options(self) -> Mapping[str, list[str]]:
        """Name -> overrides."""
        if isinstance(self.arms, dict):
            return self.arms
        return {name: ARMS[name] for name in self.arms}

    @property
    def comparisons(self) -> list[tuple[str, str]]:
        """Pairs (arm, what it is compared with): the reference first, then controls."""
        pairs = [(arm, self.reference) for arm in self.arms if arm != self.reference]
        if "both" in self.arms:
            pairs += [("both", control) for control in CONTROLS if control in self.arms]
        pairs += [(arm, other) for arm, others in self.controls.items() for other in others]
        return list(dict.fromkeys(pairs))


@dataclass(frozen=True)
class Arm:
    """One training of a sweep, and what came of it."""

    dataset: str
    backbone: str
    arm: str
    seed: int
    config: Path
    options: list[str]
    folder: Path

    def cell(self) -> Cell | None:
        """What it left; None where it is not finished or was made with other options."""
        found = load_cell(self.folder)
        return found if found is not None and found.options == self.options else None


def load_sweep(path: Path) -> Sweep:
    """Read a sweep.

    Raises:
        FileNotFoundError: the file, or a config that it names, is not there.
        ValueError: it is not a sweep; names the key.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the sweep {path} must exist; it does not.")
    tree = read_yaml(path)
    refuse_secrets(str(path), tree)
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}.") from None
    if isinstance(sweep.arms, list):
        for name in sweep.arms:
            if name not in ARMS:
                raise ValueError(
                    f"{path}: an arm must be one of {', '.join(ARMS)}, or come with its overrides; "
                    f"got {name!r}."
                )
    if sweep.reference not in sweep.arms:
        raise ValueError(
            f"{path}: reference must be one of the arms {', '.join(sweep.arms)}; got "
            f"{sweep.reference!r}."
        )
    for arm in [*sweep.controls, *(name for others in sweep.controls.values() for name in others)]:
        if arm not in sweep.arms:
            raise ValueError(
                f"{path}: controls must name arms, {', '.join(sweep.arms)}; got {arm!r}."
            )
    return sweep


def trainings(sweep: Sweep) -> list[Arm]:
    """All trainings; a data set's seeds come last, so that a sweep cut short has all arms."""
    found = []
    for name, dataset in sweep.datasets.items():
        for seed, (backbone, own) in product(range(sweep.seeds), dataset.backbones.items()):
            for arm, of_arm in sweep.arm_options.items():
                named = [] if any(o.startswith("backbone.name=") for o in own) else [backbone]
                options = [
                    *(f"backbone.name={name}" for name in named),
                    *dataset.options,
                    *own,
                    *of_arm,
                    f"seed={seed}",
                ]
                folder = sweep.out / name / backbone / arm / f"seed-{seed}"
                found.append(Arm(name, backbone, arm, seed, dataset.config, options, folder))
    return found


def experiment(path: Path, jobs: int, dry_run: bool) -> None:
    """Encode what is missing, run every training that is not there yet, write the reports.

    Args:
        path: a sweep.
        jobs: trainings at the same time, one thread each.
        dry_run: check every config, and only say what is there and what would run.

    Raises:
        FileNotFoundError, ValueError: the sweep or a config is wrong, or trainings failed.
    """
    from msrec.tools.experiment.sweep_report import write_reports

    console = Console()
    sweep = load_sweep(path)
    every = trainings(sweep)
    configs = [load_config(one.config, one.options) for one in every]
    left = [at for at, one in enumerate(every) if one.cell() is None]
    console.print(f"{len(every) - len(left)} of {len(every)} trainings are done", highlight=False)
    if dry_run:
        for store in dict.fromkeys(str(c.llm.store) for c in configs if c.knowledge_levels):
            console.print(f"  store: {store}", highlight=False)
        for at in left:
            one = every[at]
            console.print(f"  {one.dataset} {one.backbone} {one.arm} seed {one.seed}")
        return
    if left:
        for at in left:
            if not configs[at].dataset.is_dir():
                raise FileNotFoundError(
                    f"{configs[at].dataset} must be a dataset folder; make it with `msrec convert`."
                )
        _encode([every[at] for at in left], [configs[at] for at in left], console)
        _run(sweep, [every[at] for at in left], jobs, console)
    text = write_reports(sweep, every, path)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _encode(every: list[Arm], configs: list[RunConfig], console: Console) -> None:
    """Each store once, with items where a run reads them; `encode` resumes."""
    stores: dict[Path, tuple[Arm, bool]] = {}
    for one, config in zip(every, configs, strict=True):
        if not config.knowledge_levels or config.llm.store is None:
            continue
        first, items = stores.get(config.llm.store, (one, False))
        stores[config.llm.store] = (first, items or "item" in config.knowledge_levels)
    for store, (one, items) in stores.items():
        console.print(f"encode {store}", highlight=False)
        run_msrec("encode", one.config, *one.options, f"llm.items={str(items).lower()}")


def _run(sweep: Sweep, left: list[Arm], jobs: int, console: Console) -> None:
    columns = (TextColumn("trainings"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    failures: list[str] = []
    with Progress(*columns, console=console) as progress, cell_processes(jobs) as processes:
        task = progress.add_task("trainings", total=len(left))
        running = {
            processes.submit(run_cell, one.folder, one.config, {}, one.options, sweep.split): one
            for one in left
        }
        for done, one in running.items():
            said = f"{one.dataset} {one.backbone} {one.arm} seed {one.seed}"
            try:
                results = done.result().results
                auc = results.metrics.all.auc if results else None
                said += f": {sweep.split} AUC {auc:.4f}" if auc else ": no finite loss"
            except Exception as error:
                said += f": {error}"
                failures.append(said)
            progress.advance(task)
            console.print(said, highlight=False)
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(left)} trainings failed; run the command again when the "
            f"reason is gone. The first: {failures[0]}"
        )
