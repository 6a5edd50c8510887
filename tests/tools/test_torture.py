"""`msrec torture`: the rows that it counts, its tables, and a small run."""

import numpy as np
import pytest
from tiny import tiny_dataset

from msrec.data.loading.global_order import GlobalOrder
from msrec.data.synthetic.simulated_dataset import synthesize
from msrec.tools.fault_injection.command_processes import contents, differences
from msrec.tools.fault_injection.damaged_files import Fault
from msrec.tools.fault_injection.killed_commands import (
    COMMANDS,
    KilledCommand,
    check_commands,
    kill_commands,
    killed_commands_table,
)
from msrec.tools.fault_injection.killed_ranks import Attempt
from msrec.tools.fault_injection.torture import (
    EPOCHS,
    KilledRun,
    RowCounts,
    count_final_rows,
    killed_runs_table,
    torture,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def expected():
    """Step -> rows, for two epochs of ten rows in batches of four."""
    rows_of_step = {}
    for epoch in range(EPOCHS):
        order = GlobalOrder((10,), 4, seed=1, window_rows=8)
        batches = np.concatenate([order.rows(epoch, w) for w in range(order.num_windows)])
        for number, rows in enumerate(batches):
            rows_of_step[epoch * order.num_batches + number + 1] = rows
    return rows_of_step


def attempt(expected, started, last):
    return Attempt(started, {step: expected[step] for step in range(started + 1, last + 1)})


def test_a_killed_and_resumed_run_loses_nothing(expected):
    attempts = [attempt(expected, 0, 3), attempt(expected, 2, 4), attempt(expected, 2, 6)]
    assert count_final_rows(attempts, expected, 10) == (0, 0, 0)


def test_the_rows_of_a_missing_step_are_lost(expected):
    """An attempt resumes from a checkpoint of step 3, but the one before ended after step 2."""
    attempts = [attempt(expected, 0, 2), attempt(expected, 3, 6)]
    assert count_final_rows(attempts, expected, 10) == ((expected[3] >= 0).sum(), 0, 0)


def test_a_batch_that_was_read_twice_counts_as_twice_lost_and_moved(expected):
    again = attempt(expected, 0, 6)
    again.rows[2] = expected[1]
    lost, twice, moved = count_final_rows([again], expected, 10)
    assert (lost, twice, moved) == (4, 4, 4)


def test_swapped_batches_count_as_moved(expected):
    other = attempt(expected, 0, 6)
    other.rows[1], other.rows[2] = other.rows[2], other.rows[1]
    assert count_final_rows([other], expected, 10) == (0, 0, 8)


def test_a_difference_is_shown_and_a_fault_is_well_only_as_expected():
    table = killed_runs_table(
        [
            KilledRun("ranks 1", 3, 3, 1, RowCounts(0, 0, 0), 0.0),
            KilledRun("x", 1, 1, 0, RowCounts(2, 0, 0), 1e-3),
        ]
    )
    assert list(table.columns[-1].cells) == ["none, bit for bit", "1.0e-03"]
    assert Fault("x", "refused", "refused: no").is_well
    assert not Fault("x", "refused", "goes on").is_well


def test_a_small_run(tmp_path, capsys):
    dataset = tiny_dataset(tmp_path / "data", rows=600)
    assert torture(dataset, tmp_path / "out", kills=2, ranks=[2], seed=0)
    text = capsys.readouterr().out
    assert "none, bit for bit" in text
    assert "NOT WELL" not in text


def test_files_that_are_left_lost_or_changed_are_named(tmp_path):
    (tmp_path / "a").mkdir()
    for name, text in (("a/b", "1"), ("c", "2"), ("e", "3")):
        (tmp_path / name).write_text(text)
    expected = contents(tmp_path)
    assert expected.keys() == {"a", "a/b", "c", "e"}
    assert contents(tmp_path, ["a"]).keys() == {"c", "e"}
    assert contents(tmp_path / "none") == {}
    assert differences(expected, expected) == []
    (tmp_path / "c").rename(tmp_path / ".c.partial")
    (tmp_path / "e").write_text("4")
    found = differences(contents(tmp_path), expected)
    assert found == ["left over: .c.partial", "missing: c", "different: e"]


def test_a_command_with_a_problem_is_not_well_and_shown():
    assert KilledCommand("export", 3, 2, 1, 1, 1).is_well
    bad = KilledCommand("predict", problems=["killed after 1.00 s: left over: x"])
    assert not bad.is_well
    assert list(killed_commands_table([bad]).columns[-1].cells) == bad.problems
    with pytest.raises(ValueError, match="--commands must name some of convert, .*; got serve"):
        check_commands(["convert", "serve"])


def test_killed_commands_leave_whole_outputs_and_finish(tmp_path):
    synthesize(tmp_path / "data", rows=4000, users=100, items=100)
    found = kill_commands(tmp_path / "data", tmp_path / "out", list(COMMANDS), kills=2, seed=1)
    assert [each.problems for each in found] == [[]] * len(COMMANDS)
    assert all(each.absent + each.earlier + each.whole == each.kills == 2 for each in found)
    assert sum(each.writing for each in found) >= len(COMMANDS)
