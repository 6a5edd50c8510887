"""Kills commands that write (SIGKILL), checks what is left, and lets the same command finish."""

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from msrec.tools.fault_injection.command_inputs import make_inputs
from msrec.tools.fault_injection.command_processes import (
    Contents,
    contents,
    differences,
    file_states,
    run_command,
    start_command,
)
from msrec.tools.fault_injection.killed_ranks import JITTER_S, POLL_S, TIMEOUT_S

LOG = "log.txt"


@dataclass(frozen=True)
class Command:
    """A command that is killed. In its words, `{inputs}` and `{work}` stand for folders.

    Attributes:
        words: the command line, without `msrec`.
        outputs: files and folders in `{work}` that it writes, each as a whole.
        earlier: more words, which make another output for the command to replace; None if the
            command continues what was begun and replaces nothing.
        marker: file in `{work}` that the command writes last; without it, the output counts as
            absent. None if an incomplete output must never be seen.
        begins_with: what `{work}` holds before the command: path in `{inputs}`.
    """

    words: str
    outputs: tuple[str, ...]
    earlier: str | None = None
    marker: str | None = None
    begins_with: str | None = None


COMMANDS = {  # on the CPU, where a start repeats every bit of another
    "convert": Command(
        "convert tables {inputs}/raw {work}/data --split random --overwrite --histories",
        ("data",),
        earlier="--seed 1",
    ),
    "encode": Command(
        "encode {inputs}/run.yaml llm.store={work}/store llm.sources=[lsa]",
        ("store",),
        marker="store/item-sources/lsa/manifest.json",
    ),
    "export": Command(
        "export {inputs}/runs/run --out {work}/export --no-compile --overwrite",
        ("export",),
        earlier="--tables float16",
    ),
    "evaluate": Command(
        "evaluate {work}/run device=cpu --resamples 20",
        ("run/predictions/test", "run/results.json"),
        earlier="--k 3",
        begins_with="runs/run",
    ),
    "predict": Command(
        "predict {inputs}/runs/run --data {inputs}/rows --out {work}/scores device=cpu",
        ("scores",),
        marker="scores/_COMMIT",
    ),
}
APPENDED = ("run/tensorboard",)
"""Folders to which each start of a command adds files."""


@dataclass
class KilledCommand:
    """Results of a command that was killed many times and started again after each kill.

    Attributes:
        writing: kills after the command had begun to write.
        absent, earlier, whole: kills after which the output was absent, the earlier one, or equal
            to the one of an undisturbed start.
        problems: sentences about what is wrong.
    """

    name: str
    kills: int = 0
    writing: int = 0
    absent: int = 0
    earlier: int = 0
    whole: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def check_commands(names: Sequence[str]) -> None:
    """Checks names of commands.

    Raises:
        ValueError: a name is not in `COMMANDS`.
    """
    if unknown := sorted(set(names) - set(COMMANDS)):
        raise ValueError(
            f"--commands must name some of {', '.join(COMMANDS)}; got {', '.join(unknown)}."
        )


def kill_commands(
    dataset: Path,
    out: Path,
    names: Sequence[str],
    kills: int,
    seed: int,
    on_kill: Callable[[], None] = lambda: None,
) -> list[KilledCommand]:
    """Kills each of some commands at random moments, and starts it again after each kill.

    Args:
        dataset: the dataset folder, with texts of the items for `encode`.
        out: an empty or new folder.
        names: names in `COMMANDS`.
        kills: kills of each command, half of them soon after a change of a file.
        seed: seed of the moments.
        on_kill: called after each kill.

    Raises:
        RuntimeError: an undisturbed command failed; names the log.
    """
    make_inputs(dataset, out / "inputs", lambda words: run_command(words, out / LOG))
    return [_CommandTrial(name, COMMANDS[name], out).kill(kills, seed, on_kill) for name in names]


def killed_commands_table(commands: Sequence[KilledCommand]) -> Table:
    """Returns a table with a line per command."""
    table = Table("command", title="killed (SIGKILL) and started again", title_justify="left")
    for head in ("kills", "while writing", "then absent", "the earlier one", "whole"):
        table.add_column(head, justify="right")
    table.add_column("after the next start", overflow="fold")
    for each in commands:
        counts = (each.kills, each.writing, each.absent, each.earlier, each.whole)
        outcome = "\n".join(each.problems) or "equal to the undisturbed output, nothing else left"
        table.add_row(each.name, *map(str, counts), outcome)
    return table


class _CommandTrial:
    """A command, its folder, and the contents that an undisturbed start leaves."""

    def __init__(self, name: str, command: Command, out: Path) -> None:
        self.name, self.command, folder = name, command, out / name
        self.before, self.work, self.log = folder / "before", folder / "work", folder / LOG
        places = {"inputs": out / "inputs", "work": self.work}
        self.words = [word.format(**places) for word in command.words.split()]
        self.before.mkdir(parents=True)
        if command.begins_with is not None:
            shutil.copytree(out / "inputs" / command.begins_with, self.before / "run")
        self.begins = [self.before]
        self.earlier: list[Contents] = [{} for _ in command.outputs]
        if command.earlier is not None:
            self._begin(self.before)
            run_command([*self.words, *command.earlier.split()], self.log)
            self.earlier = self._outputs()
            self.begins.insert(0, self.work.rename(folder / "earlier"))
        self._begin(self.before)
        self.changes, self.duration = self._run(None)
        self.whole, self.all_files = self._outputs(), contents(self.work, APPENDED)

    def kill(self, kills: int, seed: int, on_kill: Callable[[], None]) -> KilledCommand:
        """Kills the command at `kills` moments, each time from the beginning."""
        rng, result = random.Random(seed), KilledCommand(self.name)
        for number in range(kills):
            begin = self.begins[number // 2 % len(self.begins)]
            self._begin(begin)
            if number % 2:
                after = rng.randint(1, max(self.changes, 1))
                moment, delay = f"{after} changes", rng.choice((0, JITTER_S)) * rng.random()
            else:
                after, delay = 0, rng.uniform(0, self.duration)
                moment = f"{delay:.2f} s"
            changes, _ = self._run((after, delay))
            problems = self._count(result, begin is not self.before, changes > 0)
            problems += self._finish()
            result.problems += [f"killed after {moment}: {problem}" for problem in problems]
            on_kill()
        return result

    def _begin(self, folder: Path) -> None:
        """Makes the folder of the command as it was before."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(folder, self.work, symlinks=True)

    def _run(self, kill_after: tuple[int, float] | None) -> tuple[int, float]:
        """Runs the command, or kills it some seconds after a number of changes of its files.

        Returns:
            Changes that were seen, and seconds.
        """
        process = start_command(self.words, self.log)
        started, changes, state = time.monotonic(), 0, file_states(self.work)
        due = None if kill_after is None or kill_after[0] else started + kill_after[1]
        while process.is_alive() and (due is None or time.monotonic() < due):
            if (now := file_states(self.work)) != state:
                changes, state = changes + 1, now
                if kill_after is not None and changes == kill_after[0]:
                    due = time.monotonic() + kill_after[1]
            time.sleep(POLL_S)
            if time.monotonic() > started + TIMEOUT_S:
                break
        seconds = time.monotonic() - started
        process.kill()
        process.join()
        if kill_after is None and process.exitcode != 0:
            raise RuntimeError(f"msrec {' '.join(self.words)} failed by itself; see {self.log}.")
        return changes + (file_states(self.work) != state), seconds

    def _outputs(self) -> list[Contents]:
        return [contents(self.work / output) for output in self.command.outputs]

    def _count(self, result: KilledCommand, had_earlier: bool, is_writing: bool) -> list[str]:
        """Counts what a kill left, and returns what is wrong with it."""
        result.kills, result.writing = result.kills + 1, result.writing + is_writing
        marker, found = self.command.marker, self._outputs()
        if marker is not None and not (self.work / marker).is_file():
            found = [{} for _ in found]
        elif marker is not None:  # scratch files may still be beside the complete ones
            found = [
                {name: each[name] for name in whole if name in each}
                for each, whole in zip(found, self.whole, strict=True)
            ]
        before = self.earlier if had_earlier else [{} for _ in found]
        problems = [
            f"{name} is neither the old nor the new one: {'; '.join(differences(*pair))}"
            for name, *pair, old in zip(
                self.command.outputs, found, self.whole, before, strict=True
            )
            if pair[0] not in (pair[1], old)
        ]
        if not problems:
            state = "whole" if found == self.whole else "earlier" if had_earlier else "absent"
            setattr(result, state, getattr(result, state) + 1)
        return problems

    def _finish(self) -> list[str]:
        """Starts the command again, and returns what is wrong with what it leaves."""
        process = start_command(self.words, self.log)
        process.join(TIMEOUT_S)
        if process.exitcode != 0:
            process.kill()
            process.join()
            return [f"the next start fails: {' '.join(self.log.read_text().split()[-30:])}"]
        return differences(contents(self.work, APPENDED), self.all_files)
