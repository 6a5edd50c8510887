"""The lines of `msrec bench gpu`, in their order. A line is a function of `Setting`."""

from collections.abc import Callable
from dataclasses import dataclass

from msrec.tools.bench.gpu import agreement, encoding, processes, runs, speed
from msrec.tools.bench.gpu.setting import Found, Setting


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        run: returns what it found; raises an error if something is wrong, or `Skipped`.
        limit_s: seconds after which its process is killed.
    """

    run: Callable[[Setting], Found]
    limit_s: float = 60.0

    @property
    def about(self) -> str:
        """Sentence on its work."""
        return (self.run.__doc__ or "").partition("\n")[0]


LINES = {
    "versions": Line(agreement.versions),
    "lookup": Line(agreement.lookup),
    "group": Line(agreement.group),
    "backbones": Line(agreement.backbones, 180),
    "meta": Line(agreement.meta),
    "interest": Line(agreement.interest, 90),
    "validation": Line(runs.validation, 90),
    "resume": Line(runs.resume, 90),
    "resume-adam": Line(runs.resume_adam, 90),
    "export": Line(runs.export, 90),
    "uvm": Line(runs.uvm, 90),
    "evaluate": Line(runs.evaluate, 90),
    "sync": Line(speed.sync),
    "profile": Line(speed.profiled, 120),
    "precision": Line(speed.precision, 90),
    "pinned": Line(speed.pinned),
    "memory": Line(speed.memory, 90),
    "encode": Line(encoding.encode, 120),
    "sigterm": Line(processes.sigterm, 180),
    "ranks": Line(processes.ranks, 60),
}
