"""An export in memory: rows in, click probabilities out."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from msrec.data.features.row_encoder import RowEncoder
from msrec.launch.serving.export_folder import COMPILED, PROGRAM, RARE, Manifest, cpu, read_manifest
from msrec.launch.serving.quantized_tables import Tables
from msrec.launch.serving.request_rows import (
    Inputs,
    RequestEncoder,
    RequestRows,
    entity_features,
    inputs_of,
    part_of,
)

MOST_ROWS = 8192
"""Of one call of the program."""
logger = logging.getLogger(__name__)


class Scorer:
    """Scores rows with an export.

    The compiled program is used where there is one for this kind of CPU, else the exported one.

    Args:
        folder: an export.
        compiled: whether to look for the compiled program.
        compared: whether the export must have been compared with its run.

    Raises:
        FileNotFoundError: the folder holds no export.
        ValueError: it is of other versions or damaged.
    """

    def __init__(self, folder: Path, compiled: bool = True, compared: bool = True) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder, compared=compared)
        of = self.manifest
        self.raw = RowEncoder(folder)
        with np.load(folder / RARE, allow_pickle=False) as rare:
            entities = entity_features(of.histories, of.known)
            self.maker = RequestEncoder(
                self.raw.schema, of.scale, of.per_scenario, dict(rare), entities
            )
        self._tables = Tables(of.tables, folder, of.features)
        self._num_features = len(self.raw.schema.sparse)
        self.is_compiled = compiled and (folder / COMPILED).is_file()
        if self.is_compiled and of.cpu != cpu():
            logger.warning(
                "%s was compiled for %s, this is %s: using the program that is not compiled",
                folder, of.cpu, cpu(),
            )  # fmt: skip
            self.is_compiled = False
        self._program: Any
        if self.is_compiled:
            self._program = torch._inductor.aoti_load_package(str(folder / COMPILED))
        else:
            self._program = torch.export.load(folder / PROGRAM).module()

    def score(self, rows: RequestRows) -> npt.NDArray[np.float32]:
        """Click probabilities, (n,), float32.

        A row's score does not depend on the rows beside it.
        """
        if len(rows) > MOST_ROWS:
            starts = range(0, len(rows), MOST_ROWS)
            return np.concatenate([self.score(part_of(rows, s, s + MOST_ROWS)) for s in starts])
        if not len(rows):
            return np.zeros(0, dtype=np.float32)
        return self.run(self.pooled(inputs_of(rows, self._num_features)))

    @torch.inference_mode()
    def pooled(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """What the program takes: the tables are looked up."""
        pooled = self._tables.lookup(inputs.ids, inputs.offsets)
        return pooled, inputs.lengths, inputs.dense, inputs.scenario

    @torch.inference_mode()
    def run(self, inputs: tuple[Tensor, ...]) -> npt.NDArray[np.float32]:
        """Run the program."""
        size = len(inputs[0])
        if size == 1:  # torch.export takes a size of 1 for a constant
            inputs = tuple(part.expand(2, *part.shape[1:]).contiguous() for part in inputs)
        found: npt.NDArray[np.float32] = self._program(*inputs)[:size].numpy()
        return found
