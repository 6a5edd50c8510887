"""Steps that others published, and the estimates of the same steps."""

import dataclasses
from pathlib import Path

from pydantic import Field

from msrec.data.io.validation import StrictModel
from msrec.data.io.yaml_files import read_yaml
from msrec.tools.planner.hardware import load_hardware
from msrec.tools.planner.request import PlanRequest
from msrec.tools.planner.search.make_plan import make_plan
from msrec.tools.planner.tables import TableLoad

PUBLISHED_FILE = Path(__file__).parents[1] / "published.yaml"
PER_NODE = 8


class Point(StrictModel):
    """Throughput of a job: rows of a step on one rank, and rows a second of all ranks."""

    batch: int = Field(gt=0)
    rows_per_s: float = Field(gt=0)


class PublishedStep(Point):
    """A published step of a job on nodes of 8 accelerators.

    Attributes:
        minus: a second point of the same series; only the difference is compared.
        dense_mflop_per_row: 1e6 floating-point operations of the dense part, forward and backward.
        dim, rows, pooling: of the tables.
    """

    name: str
    source: str
    gpu: str
    nodes: int
    minus: Point | None = None
    dense_mflop_per_row: float
    dim: int
    rows: list[int]
    pooling: list[float] = []

    @property
    def published_ms(self) -> float:
        """Milliseconds of the whole step, or of the difference between both points."""
        points = [self, *([] if self.minus is None else [self.minus])]
        ranks = self.nodes * PER_NODE
        steps = [point.batch * ranks / point.rows_per_s * 1e3 for point in points]
        return steps[0] - sum(steps[1:])

    @property
    def estimated_ms(self) -> float:
        """Estimated milliseconds of the same: tables by a plan, the dense part at peak speed."""
        pooling = self.pooling or [1.0] * len(self.rows)
        tables = [
            TableLoad(name=f"t{i}", rows=rows, dim=self.dim, pooling=ids)
            for i, (rows, ids) in enumerate(zip(self.rows, pooling, strict=True))
        ]
        hardware = load_hardware(self.gpu)
        request = PlanRequest(tables, self.batch, self.gpu, hardware, self.nodes, PER_NODE)
        step, rows = make_plan(request).step_ms, self.batch
        if self.minus is not None:
            rows -= self.minus.batch
            step -= make_plan(dataclasses.replace(request, batch=self.minus.batch)).step_ms
        return step + rows * self.dense_mflop_per_row * 1e6 / (hardware.dense_tflops * 1e9)


def published_steps() -> list[PublishedStep]:
    """Returns the published steps that msrec knows."""
    return [PublishedStep.model_validate(entry) for entry in read_yaml(PUBLISHED_FILE)]
