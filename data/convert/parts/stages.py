"""Stages of a conversion: each runs over parts and commits the files of a part when it is done.

A work folder has a folder for each stage and in it one for each part, which appears as a whole. A
conversion that is started again with the same work folder does only the parts that are not there.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from msrec.data.convert.raw_tables import Progress
from msrec.data.engines.tasks import Engine, Task
from msrec.data.io.mistakes import note_stack

RESULT = "result.json"
PartFunction = Callable[[Any, Path], dict[str, Any]]
"""Function of (part, empty folder for its files) that returns a result as JSON."""


@dataclass(frozen=True)
class Stages:
    """Runs stages in a work folder, which all workers must see under the same path."""

    folder: Path
    engine: Engine
    progress: Progress | None = None

    def run(self, stage: str, function: PartFunction, parts: Sequence[Any]) -> list[dict[str, Any]]:
        """Calls the function with each part that is not done; returns the results of all parts.

        Args:
            stage: name of the stage, a folder of the work folder.
            function: can be pickled; given the same part, it writes the same files.
            parts: arguments of the function, which can be pickled.
        """
        folder = self.folder / stage
        folder.mkdir(exist_ok=True)
        missing = [n for n in range(len(parts)) if not (folder / part_name(n) / RESULT).is_file()]
        done = len(parts) - len(missing)
        tasks = [Task(number, parts[number]) for number in missing]
        for _ in self.engine.run(partial(run_part, function, folder), tasks):
            done += 1
            if self.progress:
                self.progress(stage, done, len(parts))
        return [json.loads((folder / part_name(n) / RESULT).read_text()) for n in range(len(parts))]

    def discard(self, stage: str, name: str) -> None:
        """Deletes a file of all parts of a stage, once no stage that is not done needs it."""
        for path in (self.folder / stage).glob(f"*/{name}"):
            path.unlink()

    def part(self, stage: str, number: int) -> Path:
        """Returns the folder of a part of a stage."""
        return self.folder / stage / part_name(number)

    def files(self, stage: str, name: str, count: int) -> list[Path]:
        """Returns the paths of a file of all parts of a stage."""
        return [self.part(stage, number) / name for number in range(count)]


def part_name(number: int) -> str:
    """Returns the name of the folder of a part."""
    return f"{number:06d}"


def run_part(function: PartFunction, folder: Path, task: Task) -> None:
    """Calls the function with a part and commits its files.

    An attempt that was cut off leaves only a scratch folder, and of two attempts one commits.
    """
    target = folder / part_name(task.number)
    scratch = folder / f".{target.name}.{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        result = function(task.part, scratch)
        (scratch / RESULT).write_text(json.dumps(result))
        try:
            os.rename(scratch, target)
        except OSError:
            if not (target / RESULT).is_file():
                raise
    except Exception as error:
        note_stack(error)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
