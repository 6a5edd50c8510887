"""An export in memory, which turns rows into scores."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from msrec.data.features.row_encoder import RowEncoder
from msrec.data.loading.managed_rows import ManagedRows
from msrec.data.loading.semantic_ids import SemanticIds
from msrec.launch.serving.dense_program import load_program
from msrec.launch.serving.export_folder import (
    RARE_IDS_FILE,
    SEMANTIC_IDS_FILE,
    TABLES,
    export_version,
    read_manifest,
)
from msrec.launch.serving.quantized_tables import QuantizedTables
from msrec.launch.serving.request_rows import RequestEncoder, RequestRows, RequestTensors
from msrec.launch.serving.sequence_files import ItemTables, UserHistories

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
        self.version = export_version(folder)
        """CRC-32 of its manifest, which names the export."""
        sequence, histories = manifest.sequence, None
        self._item_tables: ItemTables | None = None
        if sequence is not None:
            histories = UserHistories(folder, sequence)
            self._item_tables = ItemTables(folder, sequence.tables)
        codes = folder / SEMANTIC_IDS_FILE
        semantic_ids = SemanticIds.load(codes) if codes.is_file() else None
        with np.load(folder / RARE_IDS_FILE, allow_pickle=False) as rare:
            row_encoder = RowEncoder(folder)
            self.encoder = RequestEncoder(
                row_encoder,
                manifest.scale,
                manifest.per_scenario,
                dict(rare),
                [*manifest.histories, *manifest.known],
                histories,
                semantic_ids,
                ManagedRows.load(folder, row_encoder.schema),
            )
        self._tables = QuantizedTables(manifest.tables, folder / TABLES, manifest.features)
        self._program, self.is_compiled = load_program(folder, manifest, compiled)

    def score(self, rows: RequestRows) -> npt.NDArray[np.float32]:
        """Returns the scores (n, C), float32, of the columns `manifest.scores`.

        The scores of a row do not depend on the other rows.
        """
        if len(rows) > MAX_CALL_ROWS:
            starts = range(0, len(rows), MAX_CALL_ROWS)
            parts = [self.score(rows.cut(start, start + MAX_CALL_ROWS)) for start in starts]
            return np.concatenate(parts)
        if not len(rows):
            return np.zeros((0, len(self.manifest.scores)), dtype=np.float32)
        return self.run_program(self.look_up(self.tensors(rows)))

    def tensors(self, rows: RequestRows) -> RequestTensors:
        """Returns rows as tensors."""
        return rows.tensors(len(self.encoder.schema.sparse))

    @torch.inference_mode()
    def look_up(self, tensors: RequestTensors) -> tuple[Any, ...]:
        """Returns the inputs of the program; see `ServingModel`.

        The first one is read from the tables. With ordered histories, the last one is a tuple.
        """
        pooled = self._tables.lookup(tensors.ids, tensors.offsets)
        inputs = (pooled, tensors.lengths, tensors.dense, tensors.scenario)
        if self._item_tables is None:
            return inputs
        assert tensors.histories is not None
        items, *histories = tensors.histories
        return *inputs, (*histories, *self._item_tables.gather(items))

    @torch.inference_mode()
    def run_program(self, inputs: tuple[Any, ...]) -> npt.NDArray[np.float32]:
        """Returns the scores (B, C), float32, for the inputs of the program."""
        num_rows = len(inputs[0])
        if num_rows == 1:  # torch.export treats a size of 1 as a constant
            of_rows, sequence = inputs[:4], inputs[4:]
            inputs = tuple(map(_twice, of_rows))
            for candidate, bag, *rest in sequence:
                inputs += ((_twice(candidate), _twice(bag), *rest),)
        scores: npt.NDArray[np.float32] = self._program(*inputs)[:num_rows].numpy()
        return scores


def _twice(row: Tensor) -> Tensor:
    return row.expand(2, *row.shape[1:]).contiguous()
