"""Checkpoints: every world size and sharding reads every other's; crashes, damage, attacks."""

import io
import json
import multiprocessing
import os
import pickle
import random
import signal
import time
import zlib

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from rich.console import Console
from tiny import tiny_dataset, tiny_store
from torch._C._distributed_c10d import HashStore
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper

from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.commit import COMMIT, read_commit
from msrec.launch.checkpointing.dcp_storage import INDEX, read_index
from msrec.launch.checkpointing.loading import load_checkpoint
from msrec.launch.config.run_config import load_config
from msrec.launch.distributed import Process
from msrec.launch.training.metric_accumulator import HISTOGRAM
from msrec.launch.training.trainer import Trainer
from msrec.tools.show import show

pytestmark = pytest.mark.slow

WORLDS = [(1, "table_wise"), (2, "table_wise"), (2, "row_wise"), (4, "table_wise"), (4, "row_wise")]
STEPS = 7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_store(tiny_dataset(folder / "tiny", rows=1000), folder / "store")
    return folder / "tiny"


def config_of(dataset, root, sharding="table_wise", *overrides):
    tables = ", ".join(f"{name}: {sharding}" for name in ("user_id", "item_id"))
    return load_config(
        None,
        [
            *(f"dataset={dataset}", f"run_root={root}", f"llm.store={dataset.parent / 'store'}"),
            *("trainer.global_batch=96", "trainer.log_every=5", "trainer.window_rows=400"),
            *("embeddings.dim=8", "embeddings.lr=0.05", f"embeddings.sharding={{{tables}}}"),
            *("backbone.name=mmoe", "meta.user=true", "meta.scenario=true"),
            *(f"trainer.max_steps={STEPS}", "trainer.epochs=9", "trainer.patience=9"),
            *("trainer.checkpoint_every_steps=6", *overrides),
        ],
    )


def trainer_of(rank, world_size, config):
    return Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))


def pieces(value):
    """This rank's part of each tensor below: (first row, array), or (None, array) if whole."""
    if isinstance(value, dict):
        return {f"{k}.{n}": p for k, below in value.items() for n, p in pieces(below).items()}
    if hasattr(value, "local_shards"):
        shards = [
            (s.metadata.shard_offsets[0], s.tensor.numpy().copy()) for s in value.local_shards()
        ]
        return {"": shards[0]} if shards else {}
    return {"": (None, value.numpy().copy())} if isinstance(value, torch.Tensor) else {}


def state_of(trainer):
    """The state that a checkpoint must restore."""
    metrics, losses, _ = trainer._unlogged.reduced()
    weights = pieces({"model": trainer.model.state_dict(), "optim": trainer.optimizer.state_dict()})
    return weights, metrics.counts()[HISTOGRAM].numpy(), losses


def put_together(ranks):
    """Name -> whole array, from every rank's pieces."""
    pieces_of = {}
    for own in ranks:
        for name, (first, rows) in own.items():
            pieces_of.setdefault(name, []).append((first, rows))
    return {
        name: parts[0][1]
        if parts[0][0] is None
        else np.concatenate([rows for _, rows in sorted(parts, key=lambda part: part[0])])
        for name, parts in pieces_of.items()
    }


def train(rank, world_size, config):
    """Seven steps, a checkpoint after the sixth: one step after a log line."""
    trainer = trainer_of(rank, world_size, config)
    save, seen = trainer.checkpoints.save, []

    def save_and_look(*args):
        seen.append(state_of(trainer))
        return save(*args)

    trainer.checkpoints.save = save_and_look
    trainer.fit()
    return seen[0], vars(trainer.resume())


@pytest.fixture(scope="module")
def saved(dataset, tmp_path_factory):
    """World -> the run folder's root, with the checkpoint of step 6 as its newest."""
    roots = {}
    for world, sharding in WORLDS:
        root = tmp_path_factory.mktemp(f"{sharding}-{world}")
        ranks = run_ranks(train, world, config_of(dataset, root, sharding))
        checkpoints = root / "default/checkpoints"
        (checkpoints / f"step-{STEPS:08d}" / COMMIT).unlink()
        assert Checkpoints(checkpoints).newest().name == "step-00000006"
        roots[world, sharding] = (root, [state for state, _ in ranks])
    return roots


@pytest.mark.parametrize("of", WORLDS, ids=str)
@pytest.mark.parametrize("to", WORLDS, ids=str)
def test_every_world_and_sharding_reads_what_every_other_wrote(dataset, saved, tmp_path, of, to):
    root, states = saved[of]
    run = tmp_path / "default"
    run.mkdir()
    (run / "checkpoints").symlink_to(root / "default/checkpoints")
    config = config_of(dataset, tmp_path, to[1], "trainer.max_steps=8")
    config = config.model_copy(
        update={"trainer": config.trainer.model_copy(update={"checkpoint_every_steps": None})}
    )
    loaded = run_ranks(look, to[0], config)
    wanted, got = (put_together([weights for weights, *_ in ranks]) for ranks in (states, loaded))
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value, name)
    assert any("momentum" in name or "exp_avg" in name for name in wanted)
    for _, counts, losses in loaded:
        np.testing.assert_array_equal(counts, states[0][1])
        assert losses == states[0][2]
    assert len(losses) == 1


def look(rank, world_size, config):
    """The state after loading."""
    trainer = trainer_of(rank, world_size, config)
    trainer.resume()
    return state_of(trainer)


def two_steps(rank, world_size, config):
    """The weights two steps after loading; nothing is saved."""
    trainer = trainer_of(rank, world_size, config)
    progress = trainer.resume()
    trainer.checkpoints.save = lambda *args: None
    trainer.fit(progress)
    assert progress.step == 8
    return pieces(trainer.model.state_dict())


def test_two_more_steps_are_the_same_in_every_world(dataset, saved, tmp_path):
    root, _ = saved[2, "row_wise"]
    (tmp_path / "default").mkdir()
    (tmp_path / "default/checkpoints").symlink_to(root / "default/checkpoints")
    after = [
        put_together(
            run_ranks(two_steps, n, config_of(dataset, tmp_path, kind, "trainer.max_steps=8"))
        )
        for n, kind in WORLDS
    ]
    for other in after[1:]:
        for name, value in after[0].items():
            np.testing.assert_allclose(other[name], value, rtol=1e-7, atol=3e-8, err_msg=name)


def test_the_rest_of_an_epoch_is_logged_as_if_nothing_had_happened(dataset, tmp_path):
    """Killed one step after a log line: the next line covers the same rows on another world."""
    lines = {}
    for name, first, second in (("whole", None, 1), ("killed", 2, 1)):
        root = tmp_path / name
        if first:
            run_ranks(train, first, config_of(dataset, root))
            (root / f"default/checkpoints/step-{STEPS:08d}" / COMMIT).unlink()
        run_ranks(finish, second, config_of(dataset, root, "table_wise", "trainer.max_steps=11"))
        log = (root / "default/metrics.jsonl").read_text().splitlines()
        lines[name] = [json.loads(line) for line in log]
    whole, killed = (
        next(x["metrics"] for x in lines[n] if (x["step"], x["split"]) == (10, "train"))
        for n in ("whole", "killed")
    )
    assert killed["rows/all"] == whole["rows/all"] == 480
    assert killed["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert killed["auc/all"] == pytest.approx(whole["auc/all"], abs=1e-4)


def finish(rank, world_size, config):
    trainer_of(rank, world_size, config).fit()


# Faults --------------------------------------------------------------------------------------


class Plain(torch.nn.Module):
    def __init__(self, rows=64):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(rows, 256))


def plain(rows=64):
    model = Plain(rows)
    adam = KeyedOptimizerWrapper(dict(model.named_parameters()), lambda p: torch.optim.Adam(p))
    optimizer = CombinedOptimizer([("dense", adam)])
    optimizer.init_state(set())
    return model, optimizer


def save_some(rank, world_size, folder, steps):
    model, optimizer = plain()
    with Checkpoints(folder, keep=9) as checkpoints:
        for step in steps:
            model.weight.data.fill_(step)
            checkpoints.save(model, optimizer, {"step": step, "best_step": step})
            model.weight.data.fill_(-1)  # the save must have the values of its call


def load_newest(rank, world_size, folder):
    model, optimizer = plain()
    path = Checkpoints(folder).newest()
    state = load_checkpoint(path, model, optimizer)
    return state["step"], model.weight.detach().unique().tolist()


def test_a_save_has_the_values_at_the_time_of_its_call(tmp_path):
    run_ranks(save_some, 2, tmp_path, [1, 2, 3])
    assert run_ranks(load_newest, 1, tmp_path) == [(3, [3.0])]
    assert [path.name[-1] for path in sorted(tmp_path.iterdir())] == ["1", "2", "3"]


@pytest.mark.parametrize("what", ["__0_0.distcp", INDEX])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_flipped_bit_is_found_and_the_file_named(tmp_path, what, ranks):
    run_ranks(save_some, 1, tmp_path, [1, 2])
    file = tmp_path / "step-00000002" / what
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    with pytest.raises(AssertionError) as caught:
        run_ranks(load_newest, ranks, tmp_path)
    assert str(caught.value).count(f"{file} must have the CRC-32") == ranks
    assert "delete its folder; the one before it is step-00000001" in str(caught.value)


def test_a_marker_that_is_no_json_is_an_error(tmp_path):
    run_ranks(save_some, 1, tmp_path, [1])
    (tmp_path / "step-00000001" / COMMIT).write_text("{")
    with pytest.raises(ValueError, match=r"COMMIT must be JSON; .*\. Delete the folder"):
        read_commit(tmp_path / "step-00000001")


def test_nothing_in_a_checkpoint_can_run_code(tmp_path):
    """A pickle that would leave a file behind, under a right checksum: refused, and not run."""
    run_ranks(save_some, 1, tmp_path, [1])
    folder, trace = tmp_path / "step-00000001", tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {trace}",)

    index = read_index(folder)
    chunk = index["model.weight"]["chunks"][0]
    evil = pickle.dumps(Evil())
    data = folder / chunk["file"]
    content = data.read_bytes()
    place = slice(chunk["start"], chunk["start"] + chunk["bytes"])
    data.write_bytes(content[: place.start] + evil.ljust(chunk["bytes"]) + content[place.stop :])
    (folder / ".metadata").write_bytes(evil)
    commit = json.loads((folder / COMMIT).read_text())
    commit["crc32"][chunk["file"]] = f"{zlib.crc32(data.read_bytes()):08x}"
    (folder / COMMIT).write_text(json.dumps(commit))
    with pytest.raises(AssertionError, match="[Ww]eights.only"):
        run_ranks(load_newest, 1, tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["model.weight"].update(dtype="load"), "'load' is no dtype"),
        (
            lambda index: index["model.weight"]["chunks"][0].update(file="../../other"),
            "'../../other' is not a file of this folder",
        ),
    ],
)
def test_an_index_that_names_something_else_is_refused(tmp_path, change, message):
    run_ranks(save_some, 1, tmp_path, [1])
    folder = tmp_path / "step-00000001"
    index = read_index(folder)
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        read_index(folder)


def save_for_ever(folder, first):
    """Save 6 MB again and again until the process is killed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    model, optimizer = plain(rows=2000)
    checkpoints = Checkpoints(folder, keep=2)
    for step in range(first, 10**6):
        model.weight.data.fill_(step)
        checkpoints.save(model, optimizer, {"step": step, "best_step": first})


def load_big(rank, world_size, folder):
    model, optimizer = plain(rows=2000)
    path = Checkpoints(folder).newest()
    return load_checkpoint(path, model, optimizer)["step"], model.weight.detach().unique().tolist()


def test_killed_at_twenty_moments_of_saving_the_newest_committed_one_loads(tmp_path):
    seeded, reached = random.Random(0), 0
    cut = 0
    for _ in range(20):
        context = multiprocessing.get_context("fork")
        process = context.Process(target=save_for_ever, args=(tmp_path, reached + 1))
        process.start()
        deadline = time.monotonic() + 20
        while not list(tmp_path.glob(f"*/{COMMIT}")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.15 + 0.2 * seeded.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        newest = Checkpoints(tmp_path).newest()
        cut += any(not (path / COMMIT).exists() for path in tmp_path.glob("step-*"))
        [(step, values)] = run_ranks(load_big, 1, tmp_path)
        assert values == [step]
        assert newest.name == f"step-{step:08d}"
        assert step >= reached
        reached = step
    assert reached > 1
    assert cut  # some of the kills left a half-written folder behind


def test_metrics_are_kept_under_the_name_the_trainer_uses(saved):
    root, _ = saved[1, "table_wise"]
    index = read_index(root / "default/checkpoints/step-00000006")
    assert index[f"metrics.{HISTOGRAM}"]["dtype"] == "float64"


def test_show_prints_the_content_of_a_checkpoint_and_checks_its_files(tmp_path):
    run_ranks(save_some, 2, tmp_path, [3])
    console = Console(file=io.StringIO(), width=160)
    show(tmp_path / "step-00000003", console=console)
    text = console.file.getvalue()
    for part in ("weight", "64 x 256", "optimizer state: 3 tensors", "step: 3", "all with the CRC"):
        assert part in text
    (tmp_path / "step-00000003" / INDEX).write_text("{}")
    with pytest.raises(ValueError, match="must have the CRC-32"):
        show(tmp_path / "step-00000003", console=console)
