"""The settings of a sweep, the trainings of each, and the cells of those that are finished."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from msrec.tools.experiment.cell import Cell, Choice, PlannedTraining, load_cell
from msrec.tools.experiment.sweep import Sweep
from msrec.tools.experiment.tuning import best_trial, overrides

BACKBONE = "backbone.name="
Kind = Literal["trial", "seed", "speed"]
"""Trials choose tuned values on validation, seeds are evaluated, one training measures speed."""


@dataclass(frozen=True)
class Setting:
    """A model with an arm on a data set of a sweep.

    The folders of its trainings are OUT/DATASET/MODEL/ARM/KIND-NUMBER.
    """

    sweep: Sweep
    dataset: str
    model: str
    arm: str

    def __str__(self) -> str:
        return " ".join(name for name in (self.dataset, self.model, self.arm) if name)

    @property
    def config(self) -> Path:
        """YAML file of a run."""
        return self.sweep.datasets[self.dataset].config

    @property
    def options(self) -> list[str]:
        """Overrides of all its trainings."""
        sweep, dataset = self.sweep, self.sweep.datasets[self.dataset]
        own = sweep.models(self.dataset)[self.model]
        options = []
        if dataset.convert:
            options.append(f"dataset={sweep.out}/data/{self.dataset}")
            options.append(f"llm.store={sweep.out}/store/{self.dataset}")
        if not any(option.startswith(BACKBONE) for option in own):
            options.append(BACKBONE + self.model)
        return [*options, *dataset.options, *own, *sweep.arm_options[self.arm]]

    def training(self, kind: Kind, number: int, choice: Choice) -> PlannedTraining:
        """Returns a training with tuned values, which are empty without tuning."""
        sweep, options = self.sweep, self.options
        backbone = [o.removeprefix(BACKBONE) for o in options if o.startswith(BACKBONE)][-1]
        options += [*overrides(choice, backbone), f"seed={number if kind == 'seed' else 0}"]
        if kind == "speed":
            options.append(f"trainer.max_steps={sweep.timed_steps}")
        return PlannedTraining(
            folder=sweep.out / self.dataset / self.model / self.arm / f"{kind}-{number}",
            config=self.config,
            options=options,
            choice=choice,
            split=sweep.split if kind == "seed" else None,
        )

    def finished_trial(self, number: int) -> Cell | None:
        """Reads the cell of a trial with any choice; None if it is not finished."""
        cell = load_cell(self.training("trial", number, {}).folder)
        return None if cell is None else self.training("trial", number, cell.choice).cell()


@dataclass(frozen=True)
class SettingCells:
    """Cells of a setting by number, None where a training is not finished.

    `choice` is that of the best trial, or empty without trials. It is None until all trials are
    finished; until then seeds and speed count as missing.
    """

    setting: Setting
    choice: Choice | None
    trials: list[Cell | None]
    seeds: list[Cell | None]
    speed: list[Cell | None]

    @property
    def missing(self) -> list[str]:
        """Folder names of the trainings to run."""
        kinds = {"trial": self.trials, "seed": self.seeds, "speed": self.speed}
        return [f"{kind}-{n}" for kind in kinds for n, cell in enumerate(kinds[kind]) if not cell]

    @property
    def evaluated(self) -> dict[int, Cell]:
        """Seed -> cell, of the seeds whose loss stayed finite."""
        return {seed: cell for seed, cell in enumerate(self.seeds) if cell and cell.results}

    @property
    def finished(self) -> list[Cell]:
        """Cells of all finished trials and seeds."""
        return [cell for cell in (*self.trials, *self.seeds) if cell is not None]


def settings(sweep: Sweep) -> Iterator[Setting]:
    """Yields the settings: each data set with each of its models and each arm."""
    for dataset in sweep.datasets:
        for model in sweep.models(dataset):
            for arm in sweep.arm_options:
                yield Setting(sweep, dataset, model, arm)


def load_cells(setting: Setting) -> SettingCells:
    """Reads the cells of a setting."""
    sweep = setting.sweep
    trials = [setting.finished_trial(number) for number in range(sweep.trials)]
    best = best_trial(trials)
    tuned = None if best is None else best.choice
    choice = tuned if sweep.trials else {}

    def cells(kind: Kind, count: int) -> list[Cell | None]:
        if choice is None:
            return [None] * count
        return [setting.training(kind, number, choice).cell() for number in range(count)]

    timed = 1 if sweep.timed_steps else 0
    return SettingCells(setting, choice, trials, cells("seed", sweep.seeds), cells("speed", timed))
