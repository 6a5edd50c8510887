"""Training: 2 ranks = 1 rank, resume = no resume, early stopping, and errors of users."""

import itertools
import json
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ranks import run_ranks
from tiny import replace_column, tiny_dataset, tiny_store
from trainings import BOTH, config_of, fit, fit_partly_then_resume, weights

from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.config.run_config import save_config
from msrec.launch.distributed import Process, process_group
from msrec.launch.evaluation.evaluate import evaluate
from msrec.launch.evaluation.results import load_results
from msrec.launch.rank_states import read_ranks
from msrec.launch.training.preemption import Preempted
from msrec.launch.training.trainer import Trainer
from msrec.model.distributed.kernels import trained_kernels

pytestmark = pytest.mark.slow

BACKBONES = ["shared_bottom", "mmoe", "star"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_store(tiny_dataset(folder / "tiny"), folder / "store")
    return folder / "tiny"


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_two_ranks_give_the_losses_of_one_rank(dataset, tmp_path, backbone, sharding):
    options = [
        f"backbone.name={backbone}",
        "embeddings.sharding={" + f"user_id: {sharding}, item_id: {sharding}" + "}",
        *("embeddings.l2=0.01", "optimizer.warmup_steps=5", "optimizer.decay=linear", *BOTH),
        # A bottom MLP before STAR's partitioned norm has directions without any gradient, and Adam
        # turns the rounding noise there into whole steps, another noise on 2 ranks.
        *(["interaction.bottom_dims=[]"] if backbone == "star" else []),
    ]
    one = run_ranks(fit, 1, config_of(dataset, tmp_path / "1", *options))[0][0]
    two = run_ranks(fit, 2, config_of(dataset, tmp_path / "2", *options))[0][0]
    assert len(one) >= 20
    np.testing.assert_allclose(two, one, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        # 10,000 x 10,000 weights and those of the first layer in 1,000 experts, four floats each
        (
            [
                "backbone.name=mmoe",
                "backbone.num_experts=1000",
                "backbone.expert_dims=[10000,10000]",
            ],
            r"Largest: backbone, 100,\d{3},\d{3},\d{3} parameters with gradients .*: 1,50\d\.\d G",
        ),
        (
            ["trainer.global_batch=16000000", "embeddings.dim=2048"],
            r"Largest: the vectors of 16,000,000 rows \(.*\): 732\.4 GiB",
        ),
    ],
)
def test_a_training_that_cannot_fit_is_refused_with_its_largest_parts(
    dataset, tmp_path, options, largest
):
    config = config_of(dataset, tmp_path, *options)
    with pytest.raises(ValueError, match=largest), process_group("cpu") as process:
        Trainer(config, process)
    assert not config.run_dir.exists()


def test_tables_trained_with_adam_give_the_same_on_two_ranks(dataset, tmp_path):
    options = ["embeddings.optimizer=adam", "embeddings.lr=0.01"]
    one = run_ranks(fit, 1, config_of(dataset, tmp_path / "1", *options))[0][0]
    two = run_ranks(fit, 2, config_of(dataset, tmp_path / "2", *options))[0][0]
    np.testing.assert_allclose(two, one, atol=1e-4)
    assert one[-1] < one[0]


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam"])
def test_a_resumed_run_ends_with_the_weights_of_one_that_was_never_stopped(
    dataset, tmp_path, optimizer
):
    """Dropout included: it is seeded per step."""
    options = [f"embeddings.optimizer={optimizer}", "backbone.dropout=0.2", *BOTH]
    whole = run_ranks(fit, 1, config_of(dataset, tmp_path / "whole", *options))[0]
    config = config_of(dataset, tmp_path / "resumed", *options)
    resumed = run_ranks(fit_partly_then_resume, 1, config, 13)[0]
    assert whole[1] == resumed[1]
    assert len(resumed[0]) == len(whole[0]) - 13
    for name, value in whole[2].items():
        np.testing.assert_array_equal(resumed[2][name], value, name)


def updates_counted(rank, world_size, config):
    """Each kernel's number of updates after each step; lookups of validations count as none."""
    trainer, counts = Trainer(config, Process(0, 1, 1, torch.device("cpu"))), []
    add = trainer._unlogged.add

    def add_and_count(outcome):
        counts.append({int(kernel.iter_cpu) for kernel in trained_kernels(trainer.model)})
        add(outcome)

    trainer._unlogged.add = add_and_count
    trainer.fit()
    return counts


def test_updates_of_tables_are_counted_without_validations_and_on_resuming(dataset, tmp_path):
    """Adam on a GPU corrects the bias of its moments by this count."""
    options = ["trainer.validate_every_steps=2", "trainer.patience=9"]
    config = config_of(dataset, tmp_path, "trainer.max_steps=5", *options)
    assert run_ranks(updates_counted, 1, config)[0] == [{1}, {2}, {3}, {4}, {5}]
    config = config_of(dataset, tmp_path, "trainer.max_steps=7", *options)
    assert run_ranks(updates_counted, 1, config)[0] == [{6}, {7}]


def test_a_run_resumed_on_three_ranks_has_the_same_sums_of_gradients(dataset, tmp_path):
    """The order in which three ranks' values are added must not change after the first step."""
    options = ["trainer.max_steps=9", *BOTH]
    whole = run_ranks(fit, 3, config_of(dataset, tmp_path / "whole", *options))
    config = config_of(dataset, tmp_path / "resumed", *options)
    resumed = run_ranks(fit_partly_then_resume, 3, config, 5)
    for of_whole, of_resumed in zip(whole, resumed, strict=True):
        for name, value in of_whole[2].items():
            np.testing.assert_array_equal(of_resumed[2][name], value, name)


def test_a_run_goes_on_with_another_world_size(dataset, tmp_path):
    """Stopped on 2 ranks, finished on 1: the losses are those of an undisturbed run."""
    options = ["embeddings.sharding={user_id: row_wise}"]
    whole = run_ranks(fit, 1, config_of(dataset, tmp_path / "whole", *options))[0][0]
    first = config_of(dataset, tmp_path / "run", *options, "trainer.max_steps=11")
    run_ranks(fit, 2, first)
    rest = run_ranks(fit, 1, config_of(dataset, tmp_path / "run", *options))[0][0]
    np.testing.assert_allclose(rest, whole[11:], atol=1e-4)


def test_a_finished_run_does_nothing_more(dataset, tmp_path):
    config = config_of(dataset, tmp_path)
    first = run_ranks(fit, 1, config)[0]
    again = run_ranks(fit, 1, config)[0]
    assert again[0] == []
    assert again[1] == first[1]


def test_training_stops_after_patience_and_evaluates_the_best_epoch(dataset, tmp_path):
    options = ["trainer.epochs=30", "trainer.patience=2", "embeddings.lr=0.5", "optimizer.lr=0.02"]
    _, progress, _ = run_ranks(fit, 1, config_of(dataset, tmp_path, *options))[0]
    assert progress["epoch"] < 30
    assert progress["epochs_without_gain"] == 2
    best = Checkpoints(tmp_path / "default/checkpoints").best()
    assert best.name == f"step-{progress['best_step']:08d}"
    assert progress["best_step"] < progress["step"]


def validations(folder):
    """(step, epoch, AUC) of each validation."""
    lines = (folder / "default/metrics.jsonl").read_text().splitlines()
    return [
        (line["step"], line["epoch"], line["metrics"]["auc/all"])
        for line in map(json.loads, lines)
        if line["split"] == "valid"
    ]


def test_validating_within_an_epoch_changes_nothing_but_what_is_kept(dataset, tmp_path):
    """21 steps an epoch: the same weights, and the AUC after each epoch, with more in between."""
    plain = run_ranks(fit, 1, config_of(dataset, tmp_path / "plain", *BOTH))[0]
    options = [*BOTH, "trainer.validate_every_steps=8", "trainer.patience=9"]
    often = config_of(dataset, tmp_path / "often", *options)
    losses, progress, weights = run_ranks(fit, 1, often)[0]
    assert losses == plain[0]
    for name, value in plain[2].items():
        np.testing.assert_array_equal(weights[name], value, name)
    lines = validations(tmp_path / "often")
    assert [line[:2] for line in lines] == [
        (8, 0),
        (16, 0),
        (21, 1),
        (24, 1),
        (32, 1),
        (40, 1),
        (42, 2),
    ]
    after_epochs = [line for line in lines if line[0] in (21, 42)]
    assert after_epochs == validations(tmp_path / "plain")
    assert progress["best_value"] == max(auc for _, _, auc in lines)


def test_a_run_stopped_before_a_validation_within_an_epoch_validates_later(dataset, tmp_path):
    options = ["trainer.validate_every_steps=8", "trainer.patience=9"]
    whole = run_ranks(fit, 1, config_of(dataset, tmp_path / "whole", *options))[0]
    config = config_of(dataset, tmp_path / "stopped", *options)
    resumed = run_ranks(stop_at_validation_then_resume, 1, config, 16)[0]
    assert validations(tmp_path / "stopped") == validations(tmp_path / "whole")
    assert resumed[1] == whole[1]
    for name, value in whole[2].items():
        np.testing.assert_array_equal(resumed[2][name], value, name)


def stop_at_validation_then_resume(rank, world_size, config, step):
    """Stops as if SIGTERM came while the step is validated, then resumes."""
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    evaluate_it = trainer.evaluate
    progress = trainer.resume()

    def stopped(loader):
        if progress.step == step:
            raise Preempted
        return evaluate_it(loader)

    trainer.evaluate = stopped
    assert trainer.fit(progress).preempted
    return fit(rank, world_size, config)


def run_and_evaluate(rank, world_size, config):
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    if rank == 0:
        save_config(config, config.run_dir / "config.yaml")
    trainer = Trainer(config, process)
    trainer.fit()
    streaming = trainer.evaluate(trainer.valid)
    evaluate(config.run_dir, process, "valid")
    return streaming


def test_evaluation_on_two_ranks_equals_one_and_the_streaming_metrics(dataset, tmp_path):
    options = ["trainer.epochs=1", "embeddings.lr=0.2", "optimizer.lr=0.02", *BOTH]
    streaming = run_ranks(run_and_evaluate, 2, config_of(dataset, tmp_path, *options))[0]
    of_two = load_results(tmp_path / "default/predictions/valid")
    run_ranks(evaluate_again, 1, tmp_path / "default")
    of_one = load_results(tmp_path / "default/predictions/valid")
    assert of_one.rows == of_two.rows == 400
    exact = of_two.metrics.named()
    for name, value in of_one.metrics.named().items():
        assert value == pytest.approx(exact[name], abs=1e-6), name
        if name in streaming and not name.startswith(
            "auc"
        ):  # 400 rows: AUC's bins are tested apart
            assert value == pytest.approx(streaming[name], abs=1e-5), name


def evaluate_again(rank, world_size, run_dir):
    evaluate(run_dir, Process(rank, world_size, world_size, torch.device("cpu")), "valid")


def refusal(dataset, root, *overrides, function=fit, ranks=1):
    with pytest.raises(AssertionError) as caught:
        run_ranks(function, ranks, config_of(dataset, root, *overrides))
    return str(caught.value)


def test_a_checkpoint_of_another_model_is_refused(dataset, tmp_path):
    run_ranks(fit, 1, config_of(dataset, tmp_path, "trainer.epochs=1"))
    message = refusal(dataset, tmp_path, "backbone.name=mmoe")
    assert "is a checkpoint of another model: it lacks" in message
    message = refusal(dataset, tmp_path, "embeddings.dim=4")
    assert "has shape" in message


def test_a_run_does_not_go_on_with_rows_in_another_order(dataset, tmp_path):
    run_ranks(fit, 1, config_of(dataset, tmp_path, "trainer.epochs=1"))
    message = refusal(dataset, tmp_path, "trainer.global_batch=48")
    assert "its global_batch was 96 and is 48 now" in message


def test_a_checkpoint_without_its_marker_is_passed_over(dataset, tmp_path):
    config = config_of(dataset, tmp_path, "trainer.patience=9")
    run_ranks(fit, 1, config)
    folders = sorted((tmp_path / "default/checkpoints").iterdir())
    (folders[-1] / "COMMIT").unlink()
    assert Checkpoints(tmp_path / "default/checkpoints").newest() == folders[-2]


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of some bytes on a folder."""
    mounted = []

    def mount(folder, size):
        folder.mkdir(parents=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"a small file system needs root: {done.stderr.strip()}")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def fit_until_the_disk_is_full(rank, world_size, config):
    with pytest.raises(OSError, match="could not be written") as caught:
        fit(rank, world_size, config)
    return str(caught.value)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_while_saving_leaves_the_older_checkpoints(
    dataset, tmp_path, small_disk, ranks
):
    run_ranks(fit, ranks, config_of(dataset, tmp_path / "whole", "trainer.epochs=1"))
    whole = tmp_path / "whole/default/checkpoints/step-00000021"
    size = sum(file.stat().st_size for file in whole.iterdir())
    checkpoints = tmp_path / "default/checkpoints"
    small_disk(checkpoints, int(1.6 * size))
    config = config_of(dataset, tmp_path, "trainer.patience=9")
    for message in run_ranks(fit_until_the_disk_is_full, ranks, config):
        assert "no space left on the disk" in message
        assert "step-00000021, is intact" in message
    assert [path.name for path in checkpoints.iterdir()] == ["step-00000021"]
    kept = shutil.copytree(checkpoints, tmp_path / "kept")
    config = config_of(dataset, tmp_path / "more", "trainer.patience=9")
    shutil.copytree(kept, tmp_path / "more/default/checkpoints")
    rest = run_ranks(fit, 1, config)[0]
    assert len(rest[0]) == 21


def test_a_plan_is_reused_and_refused_for_another_world_size_or_model(dataset, tmp_path):
    first = run_ranks(fit, 1, config_of(dataset, tmp_path / "a"))[0]
    plan = tmp_path / "a/default/plan.json"
    again = run_ranks(fit, 1, config_of(dataset, tmp_path / "b", f"plan={plan}"))[0]
    assert again[0] == first[0]
    message = refusal(dataset, tmp_path / "c", f"plan={plan}", ranks=2)
    assert "is a plan for 1 ranks; this job has 2" in message
    message = refusal(dataset, tmp_path / "d", f"plan={plan}", "embeddings.dim=4")
    assert "table 'genre' is planned as [7, 8] (rows, dim); this model has [7, 4]" in message


def test_a_store_made_otherwise_than_the_config_says_is_refused(dataset, tmp_path):
    message = refusal(dataset, tmp_path, "meta.user=true", "llm.pooling=last")
    assert "pooling" in message
    message = refusal(dataset, tmp_path, "meta.user=true", "llm.template=detailed")
    assert "template" in message


def test_meta_networks_without_a_store_are_refused(dataset, tmp_path):
    message = refusal(dataset, tmp_path, "meta.user=true", "llm.store=null")
    assert "need llm.store=FOLDER" in message


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "data")
    message = refusal(tmp_path / "data", tmp_path, "optimizer.lr=1e30", "llm.store=null")
    assert "the loss must be finite" in message


def lose(rank, world_size, config, at):
    """Trains until the loss of rank 0's step `at` is not finite."""
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    steps, outcomes = itertools.count(1), trainer.pipeline.outcomes

    def with_nan(*args):
        for outcome in outcomes(*args):
            is_lost = next(steps) == at and rank == 0
            yield outcome._replace(losses=outcome.losses * torch.nan) if is_lost else outcome

    trainer.pipeline.outcomes = with_nan
    with pytest.raises(ValueError, match="the loss must be finite") as error:
        trainer.fit()
    return str(error.value)


@pytest.mark.parametrize(("save_every", "newest"), [(4, 4), (7, None)])
def test_a_lost_step_is_named_when_losses_are_read_and_never_saved(
    dataset, tmp_path, save_every, newest
):
    options = (f"trainer.checkpoint_every_steps={save_every}", "trainer.log_every=10")
    config = config_of(dataset, tmp_path, *options, "llm.store=null")
    for message in run_ranks(lose, 2, config, 6):
        assert "the loss must be finite; it is nan at step 6 (epoch 0)" in message
    saved = Checkpoints(config.run_dir / "checkpoints").newest()
    assert saved is None if newest is None else saved.name == f"step-{newest:08d}"
    assert {rank.step for rank in read_ranks(config.run_dir)} == {5}


def test_one_class_in_validation_is_an_error(dataset, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tiny import replace_column

    shutil.copytree(dataset, tmp_path / "data")
    for path in (tmp_path / "data/valid").glob("*.parquet"):
        size = pq.read_metadata(path).num_rows
        replace_column(path, "label", pa.array(np.zeros(size), pa.float32()))
    message = refusal(tmp_path / "data", tmp_path, "llm.store=null")
    assert "must hold rows of both classes for auc/all" in message


def test_separate_models_with_their_own_tables_learn_nothing_from_other_scenarios(
    dataset, tmp_path
):
    flipped = tiny_dataset(tmp_path / "flipped")
    for path in (flipped / "train").glob("*.parquet"):
        table = pq.read_table(path)
        label, scenario = table["label"].to_numpy(), table["scenario"].to_numpy()
        replace_column(path, "label", pa.array(np.where(scenario == 0, 1 - label, label)))
    scores = []
    for data, name in ((dataset, "as-is"), (flipped, "flipped")):
        options = ["backbone.name=separate", "embeddings.per_scenario=true", "embeddings.l2=0.01"]
        options += ["interaction.bottom_dims=[]", f"run_id={name}", "trainer.epochs=1"]
        config = config_of(data, tmp_path, *options)
        run_ranks(fit, 1, config)
        scores.append(run_ranks(predicted, 1, config))
    before, after = (np.concatenate(found) for found in scores)
    others = before[:, 0] > 0
    np.testing.assert_allclose(before[others], after[others], atol=1e-6)
    assert np.abs(before[~others] - after[~others]).max() > 1e-2


def predicted(rank, world_size, config):
    """(scenario, logit) of the validation rows with the weights that `fit` saved."""
    process = Process(rank, world_size, world_size, torch.device("cpu"))
    trainer = Trainer(config, process)
    trainer.resume()
    trainer.model.eval()
    pairs = [
        torch.stack([outcome.scenario, outcome.outputs[:, 0]], dim=1)
        for outcome in trainer.pipeline.outcomes(trainer.valid.batches())
    ]
    return torch.cat(pairs).numpy()


def fit_by_epochs(rank, world_size, config):
    """The weights before training and after each epoch."""
    trainer = Trainer(config, Process(rank, world_size, world_size, torch.device("cpu")))
    seen, save = [weights(trainer)], trainer.checkpoints.save

    def save_and_look(*args):
        seen.append(weights(trainer))
        return save(*args)

    trainer.checkpoints.save = save_and_look
    trainer.fit()
    return seen


def part_of(name):
    if ".embedding_bags." in name:
        return "tables"
    return "meta" if "_meta." in name else "backbone"


@pytest.mark.parametrize("tables", ["rowwise_adagrad", "adam"])
def test_a_frozen_part_learns_nothing_in_its_epochs_and_the_others_do(dataset, tmp_path, tables):
    frozen = {"meta": "[0, 1]", "tables": "[1, null]", "backbone": "[2, 3]"}
    options = ["trainer.epochs=3", "trainer.patience=9", f"embeddings.optimizer={tables}"]
    options += [f"optimizer.frozen.{part}={span}" for part, span in frozen.items()]
    seen = run_ranks(fit_by_epochs, 1, config_of(dataset, tmp_path, *BOTH, *options))[0]
    learns = {"meta": [False, True, True], "tables": [True, False, False]}
    learns["backbone"] = [True, True, False]
    matrices = [name for name, value in seen[0].items() if name.endswith("weight")]
    assert {part_of(name) for name in matrices} == set(learns)
    for epoch, (before, after) in enumerate(zip(seen, seen[1:], strict=False)):
        for name in matrices:
            changed = not np.array_equal(before[name], after[name])
            assert changed == learns[part_of(name)][epoch], (name, epoch)


def test_the_meta_networks_have_a_learning_rate_of_their_own(dataset, tmp_path):
    options = ["trainer.epochs=1", "optimizer.meta_lr=1e-12", *BOTH]
    before, after = run_ranks(fit_by_epochs, 1, config_of(dataset, tmp_path, *options))[0]
    for name in (name for name in before if name.endswith("weight")):
        moved = np.abs(after[name] - before[name]).max()
        assert (moved < 1e-8) == (part_of(name) == "meta"), name


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("optimizer.frozen.meta=[2, 1]", "meta must be frozen from an epoch to a later one"),
        ("optimizer.frozen.head=[0, 1]", "optimizer.frozen.head"),
        (
            "optimizer.frozen={tables: [0, null], meta: [0, null], backbone: [0, null]}",
            "at least one parameter group must learn at some time",
        ),
    ],
)
def test_a_wrong_freezing_schedule_is_an_error(dataset, tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        config_of(dataset, tmp_path, option)
