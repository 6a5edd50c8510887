"""A plan file as a ShardingPlan of TorchRec, checked against the model that is to be sharded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torchrec.distributed.types import ShardingPlan

from msrec.data.io.json_files import read_json_object
from msrec.model.distributed.plan_files.plan_entries import plan_hash
from msrec.model.distributed.plan_files.sharding_plan import plan_from_dict
from msrec.tools.planner.sources.module_tables import collections_of


def load_plan(path: Path | str, model: nn.Module) -> ShardingPlan:
    """Reads a plan that `msrec plan` wrote, for `DistributedModelParallel(model, plan=...)`.

    TorchRec leaves a table unsharded, without a word, if its collection has another path in the
    model than in the plan. Here every collection and every table of both must have its match.

    Args:
        path: of the plan.
        model: the module that is given to DistributedModelParallel, before sharding.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a plan or was changed; or a collection or a table of the plan is not
            in the model, or the other way round, or has another size.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} must be a plan of msrec plan; there is none.")
    saved, plan = _read(file)
    planned: Mapping[str, Any] = saved["modules"]
    actual = {
        each.path: {c.name: (c.num_embeddings, c.embedding_dim) for c in each.configs}
        for each in collections_of(model)
    }
    _check_paths(file, set(planned), set(actual))
    for module, tables in actual.items():
        for table in sorted(tables.keys() | planned[module].keys()):
            _check_table(file, f"{module}: {table}", planned[module].get(table), tables.get(table))
    return plan


def _read(file: Path) -> tuple[dict[str, Any], ShardingPlan]:
    try:
        saved = read_json_object(file)
        plan = plan_from_dict(saved)
        is_changed = saved.get("hash", plan_hash(saved)) != plan_hash(saved)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} must be a plan written by msrec plan; {error!r:.80}.") from None
    if is_changed:
        raise ValueError(
            f"{file} must be unchanged since it was planned; its content does not match its hash. "
            "Plan again, or remove the key `hash` if you changed the plan on purpose."
        )
    return saved, plan


def _check_paths(file: Path, planned: set[str], actual: set[str]) -> None:
    for kind, missing, others in (
        ("the plan", planned - actual, actual - planned),
        ("the model", actual - planned, planned - actual),
    ):
        if missing:
            other = "the model" if kind == "the plan" else "the plan"
            found = ", ".join(map(repr, sorted(others))) or "none besides those that match"
            raise ValueError(
                f"{file}: a collection of {kind} must be in {other} too, or TorchRec would leave "
                f"its tables unsharded; {min(missing)!r} is not, {other} has {found}. Plan with "
                "`msrec plan --model package.module:factory`, or give the tables of the list their "
                "`module`."
            )


def _check_table(
    file: Path, name: str, entry: Mapping[str, Any] | None, size: tuple[int, int] | None
) -> None:
    if entry is None or size is None:
        owner, other = ("model", "plan") if entry is None else ("plan", "model")
        raise ValueError(f"{file}: table {name} of the {owner} must be in the {other} too.")
    if not entry["shards"]:
        return  # a replicated table; the plan does not say its size
    ends = [
        max(shard["offsets"][i] + shard["sizes"][i] for shard in entry["shards"]) for i in (0, 1)
    ]
    if ends != list(size):
        raise ValueError(
            f"{file}: table {name} must have the planned size of {ends[0]:,} rows of {ends[1]}; "
            f"the model's has {size[0]:,} rows of {size[1]}."
        )
