"""Models of torch-rechub in msrec's default widths: a reference by others.

Needs `pip install torch-rechub`. Each of its layers has a batch norm. Its models of several tasks
compute every task for every row; here a task is a scenario.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from msrec.data.loading.batch import Batch
from msrec.data.schema import Schema

EXPERT, BOTTOM = {"dims": [128, 64]}, {"dims": [256, 128]}
RECHUB: dict[str, tuple[str, Mapping[str, Any]]] = {
    "shared_bottom": ("SharedBottom", {"bottom_params": BOTTOM}),
    "mmoe": ("MMOE", {"n_expert": 4, "expert_params": EXPERT}),
    "ple": (
        "PLE",
        {"n_level": 1, "n_expert_specific": 2, "n_expert_shared": 2, "expert_params": EXPERT},
    ),
    "deepfm": ("DeepFM", {"mlp_params": BOTTOM}),
    "dcnv2": (
        "DCNv2",
        {"n_cross_layers": 2, "mlp_params": BOTTOM, "use_low_rank_mixture": False},
    ),
}
"""Name of a model of msrec -> name of torch-rechub's, and its options."""


class RechubModel(nn.Module):
    """Model of torch-rechub over the sparse features of a dataset.

    Raises:
        ValueError: torch-rechub is not installed.
    """

    def __init__(self, name: str, schema: Schema, dim: int) -> None:
        super().__init__()
        kind, options = RECHUB[name]
        try:
            made_of = importlib.import_module("torch_rechub.basic.features")
        except ImportError as error:
            raise ValueError(f"--rechub needs `pip install torch-rechub`; {error}.") from None
        features = [
            made_of.SequenceFeature(f.name, schema.tables[f.table], dim, padding_idx=0)
            if f.multi
            else made_of.SparseFeature(f.name, schema.tables[f.table], dim)
            for f in schema.sparse
        ]
        if kind in ("DeepFM", "DCNv2"):
            models = importlib.import_module("torch_rechub.models.ranking")
            names = ("deep_features", "fm_features") if kind == "DeepFM" else ("features",)
            options = {**options, **dict.fromkeys(names, features)}
        else:
            models = importlib.import_module("torch_rechub.models.multi_task")
            count = schema.num_scenarios
            tasks = {"task_types": ["classification"] * count}
            towers = [{"dims": [64]}] * count
            options = {**options, **tasks, "features": features, "tower_params_list": towers}
        self.model = getattr(models, kind)(**options)

    def forward(self, ids: Mapping[str, Tensor], scenario: Tensor) -> Tensor:
        """Returns the logits of each row's scenario, (B,)."""
        scores: Tensor = self.model(ids)
        if scores.ndim == 2:
            scores = scores.gather(1, scenario.unsqueeze(1)).squeeze(1)
        return torch.logit(scores, eps=1e-6)


def rechub_inputs(
    schema: Schema, batches: Sequence[Batch]
) -> list[tuple[dict[str, Tensor], Tensor, Tensor]]:
    """Returns ids by feature, scenarios and labels of batches; lists of ids are padded by 0."""
    inputs = []
    for batch in batches:
        ids = {}
        for feature in schema.sparse:
            bags = batch.sparse[feature.name]
            values = bags.values().long()
            if feature.multi:
                lists = list(values.split(bags.lengths().tolist()))
                values = pad_sequence(lists, batch_first=True)
            ids[feature.name] = values
        inputs.append((ids, batch.scenario, batch.label[:, 0]))
    return inputs
