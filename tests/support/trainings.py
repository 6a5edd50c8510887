"""Training of a tiny run in a test's own process group."""

import pytest
import torch

from msrec.launch.config.run_config import load_config
from msrec.launch.distributed import Process
from msrec.launch.training.trainer import Trainer

BOTH = ["meta.user=true", "meta.scenario=true"]


def config_of(dataset, root, *overrides):
    return load_config(
        None,
        [
            f"dataset={dataset}",
            f"run_root={root}",
            f"llm.store={dataset.parent / 'store'}",
            *("trainer.global_batch=96", "trainer.epochs=2", "trainer.log_every=1"),
            *("trainer.window_rows=400", "embeddings.dim=8", "embeddings.lr=0.05"),
            *overrides,
        ],
    )


def fit(rank, world_size, config):
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    result = trainer.fit()
    return result.losses, vars(result.progress), weights(trainer)


def fit_partly_then_resume(rank, world_size, config, steps):
    """Trains `steps` steps, saves, and is killed; then a new trainer finishes the run."""
    partly = config.model_copy(
        update={"trainer": config.trainer.model_copy(update={"checkpoint_every_steps": steps})}
    )

    class Killed(Exception):
        pass

    trainer = Trainer(partly, Process(rank, world_size, world_size, torch.device("cpu")))
    save = trainer.checkpoints.save

    def save_and_die(*args):
        save(*args)
        raise Killed

    trainer.checkpoints.save = save_and_die
    with pytest.raises(Killed):
        trainer.fit()
    return fit(rank, world_size, config)


def weights(trainer):
    """Every weight as one array per name; of a sharded table this rank's rows, if it has any."""
    state = {}
    for name, value in trainer.model.state_dict().items():
        shards = value.local_shards() if hasattr(value, "local_shards") else None
        parts = [value] if shards is None else [shard.tensor for shard in shards]
        if parts:
            state[name] = torch.cat(parts).numpy().copy() if shards else parts[0].numpy().copy()
    return state
