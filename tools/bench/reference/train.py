"""Trains a plain model for one epoch on a dataset folder and prints its validation AUC.

A script as an engineer writes it by hand: it reads Parquet with pyarrow, trains with Adam, and
scores with scikit-learn::

    python -m msrec.tools.bench.reference.train DATASET MODEL OUT [BATCH [fp32|bf16]]
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional

from msrec.tools.bench.reference.layers import Bag, Net, Tables
from msrec.tools.bench.reference.models import MODELS

DIM, BATCH, EVAL_BATCH, LR, LOG_EVERY = 16, 4096, 16384, 1e-3, 50


class Split:
    """Rows of a split in memory."""

    def __init__(self, folder: Path, schema: dict[str, Any]) -> None:
        features, dense = schema["sparse"], schema["dense"]
        label = schema["labels"][0]
        names = [*(feature["name"] for feature in features), *dense, "scenario", label]
        table = pq.read_table(folder, columns=names)
        columns = {name: table[name].combine_chunks() for name in names}
        self.label = torch.tensor(columns[label].to_numpy())
        self.scenario = torch.tensor(columns["scenario"].to_numpy()).long()
        values = [columns[name].to_numpy() for name in dense]
        self.dense = torch.from_numpy(np.stack(values, 1)) if dense else torch.empty(len(table), 0)
        self.features: list[Tensor | tuple[Tensor, Tensor]] = []
        for feature in features:
            column = columns[feature["name"]]
            if feature["multi"]:
                ends = torch.tensor(column.offsets.to_numpy()).long()
                self.features.append((torch.tensor(column.flatten().to_numpy()).long(), ends))
            else:
                self.features.append(torch.tensor(column.to_numpy()).long())

    def __len__(self) -> int:
        return len(self.label)

    def batch(self, rows: Tensor) -> tuple[Sequence[Tensor | Bag], Tensor, Tensor, Tensor]:
        """Returns ids, dense features, scenarios and labels of some rows."""
        ids: list[Tensor | Bag] = []
        for feature in self.features:
            if isinstance(feature, Tensor):
                ids.append(feature[rows])
                continue
            values, ends = feature
            start, lengths = ends[rows], ends[rows + 1] - ends[rows]
            offsets = lengths.cumsum(0) - lengths
            index = torch.arange(int(lengths.sum())) + (start - offsets).repeat_interleave(lengths)
            ids.append((values[index], offsets))
        return ids, self.dense[rows], self.scenario[rows], self.label[rows]


def auc(net: Net, split: Split) -> dict[str, float]:
    """Returns the AUC of all rows and of each scenario."""
    net.eval()
    scores = []
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(split)), EVAL_BATCH):
            ids, dense, scenario, _ = split.batch(rows)
            scores.append(net(ids, dense, scenario))
    logits = torch.cat(scores).numpy()
    label, of_row = split.label.numpy(), split.scenario.numpy()
    values = {"all": roc_auc_score(label, logits)}
    for s in np.unique(of_row):
        values[str(s)] = roc_auc_score(label[of_row == s], logits[of_row == s])
    return values


def main(
    folder: Path, model: str, out: Path, batch: int | str = BATCH, precision: str = "fp32"
) -> None:
    """Trains one epoch, prints the AUC of the validation rows and saves the model."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    schema = yaml.load((folder / "dataset.yaml").read_text(), yaml.CSafeLoader)
    train, valid = Split(folder / "train", schema), Split(folder / "valid", schema)
    features = schema["sparse"]
    sizes = [schema["tables"][feature["table"]] for feature in features]
    tables = Tables(sizes, [feature["multi"] for feature in features], DIM)
    num_scenarios = len(schema["scenarios"])
    net = Net(tables, len(features), DIM, len(schema["dense"]), num_scenarios, MODELS[model])
    adam = torch.optim.Adam(net.parameters(), lr=LR)
    for step, rows in enumerate(torch.split(torch.randperm(len(train)), int(batch))):
        ids, dense, scenario, label = train.batch(rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = net(ids, dense, scenario)
        loss = functional.binary_cross_entropy_with_logits(logits.float(), label)
        adam.zero_grad()
        torch.autograd.backward(loss)
        adam.step()
        if step % LOG_EVERY == 0:
            print(step, loss.item(), flush=True)
    print(auc(net, valid))
    torch.save(net.state_dict(), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
