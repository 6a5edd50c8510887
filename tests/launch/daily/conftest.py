"""Five days, each trained from the day before, and their exports."""

import pytest
from days import DAYS, convert_days, train_day


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Datasets, runs, exports and deltas of the days: day3, runs/day3, exports/3, deltas/3."""
    from msrec.launch.distributed import process_group
    from msrec.launch.serving.delta.make import write_delta
    from msrec.launch.serving.export import export

    folder = tmp_path_factory.mktemp("days")
    convert_days(folder, DAYS[-1])
    for day in DAYS:
        run = train_day(folder, day)
        with process_group("cpu") as process:
            export(run, folder / f"exports/{day}", process, compiled=False)
        if day > 1:
            exports = (folder / f"exports/{day - 1}", folder / f"exports/{day}")
            write_delta(*exports, folder / f"deltas/{day}")
    return folder
