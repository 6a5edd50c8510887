"""An export in memory, which turns rows into click probabilities."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from msrec.data.features.row_encoder import RowEncoder
from msrec.launch.serving.dense_program import load_program
from msrec.launch.serving.export_folder import RARE_IDS_FILE, read_manifest
from msrec.launch.serving.quantized_tables import QuantizedTables
from msrec.launch.serving.request_rows import RequestEncoder, RequestRows, RequestTensors

MAX_CALL_ROWS = 8192
"""Most rows of one call of the program."""


class Scorer:
    """Scores rows with an export.

    Uses the compiled program if there is one for this kind of CPU, else the exported one.

    Args:
        folder: an export.
        compiled: whether the compiled program may be used.
        allow_unfinished: accept an export that has not been compared with its run yet.

    Raises:
        FileNotFoundError: the folder holds no finished export.
        ValueError: the export was made with other versions, or is damaged.
    """

    def __init__(
        self, folder: Path, compiled: bool = True, *, allow_unfinished: bool = False
    ) -> None:
        self.folder = folder
        manifest = read_manifest(folder, allow_unfinished=allow_unfinished)
        self.manifest = manifest
        with np.load(folder / RARE_IDS_FILE, allow_pickle=False) as rare:
            self.encoder = RequestEncoder(
                RowEncoder(folder),
                manifest.scale,
                manifest.per_scenario,
                dict(rare),
                [*manifest.histories, *manifest.known],
            )
        self._tables = QuantizedTables(manifest.tables, folder, manifest.features)
        self._program, self.is_compiled = load_program(folder, manifest, compiled)

    def score(self, rows: RequestRows) -> npt.NDArray[np.float32]:
        """Returns click probabilities (n,), float32. A score does not depend on the other rows."""
        if len(rows) > MAX_CALL_ROWS:
            starts = range(0, len(rows), MAX_CALL_ROWS)
            parts = [self.score(rows.cut(start, start + MAX_CALL_ROWS)) for start in starts]
            return np.concatenate(parts)
        if not len(rows):
            return np.zeros(0, dtype=np.float32)
        return self.run_program(self.look_up(self.tensors(rows)))

    def tensors(self, rows: RequestRows) -> RequestTensors:
        """Returns rows as tensors."""
        return rows.tensors(len(self.encoder.schema.sparse))

    @torch.inference_mode()
    def look_up(self, tensors: RequestTensors) -> tuple[Tensor, ...]:
        """Returns the inputs of the program; the first one is read from the tables."""
        pooled = self._tables.lookup(tensors.ids, tensors.offsets)
        return pooled, tensors.lengths, tensors.dense, tensors.scenario

    @torch.inference_mode()
    def run_program(self, inputs: tuple[Tensor, ...]) -> npt.NDArray[np.float32]:
        """Returns the click probabilities (B,), float32, for the inputs of the program."""
        num_rows = len(inputs[0])
        if num_rows == 1:  # torch.export treats a size of 1 as a constant
            inputs = tuple(part.expand(2, *part.shape[1:]).contiguous() for part in inputs)
        scores: npt.NDArray[np.float32] = self._program(*inputs)[:num_rows].numpy()
        return scores
