"""`msrec launch convert`: ranks share the parts, and make the dataset of one process."""

import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial

import psutil
import pytest
from part_tables import differences, write_raw
from torch._C._distributed_c10d import HashStore

from msrec.data.convert.conversion import write_dataset
from msrec.data.convert.sources.plain.tables import read_tables
from msrec.data.convert.split import SplitChoice
from msrec.data.engines import rank_workers
from msrec.data.engines.engines import make_engine
from msrec.data.engines.rank_workers import RankWorkers, work
from msrec.data.engines.tasks import Task
from msrec.tools.cli.convert import words_of

TIMEOUT_S = 240
LAUNCH = [sys.executable, "-c", "from msrec.tools.cli.main import main; main()", "launch"]


def note(done, task):
    time.sleep(0.005)
    done.append((threading.current_thread().name, task.part))


class Refusal(ValueError):
    """An error that cannot be pickled, since it needs two arguments."""

    def __init__(self, file, row):
        super().__init__(f"{file}: row {row}")


def refuse(error, task):
    if task.part == 3:
        raise error
    time.sleep(0.005)


@pytest.fixture
def ranks(monkeypatch):
    """Function that starts other ranks as threads with one store, and returns rank 0's engine."""
    threads = []

    def start(count):
        store = HashStore()
        monkeypatch.setattr(rank_workers, "_rendezvous", lambda: (store, 0, count))
        monkeypatch.setattr(rank_workers, "pickle", NoPickle)
        for number in range(1, count):
            threads.append(threading.Thread(target=work, name=f"rank {number}"))
            threads[-1].start()
        return RankWorkers(store, count)

    yield start
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "a rank must end when rank 0 does"


class NoPickle:
    """Sends objects by their number, so that threads see the same ones."""

    sent = []

    @classmethod
    def dumps(cls, value):
        cls.sent.append(value)
        return str(len(cls.sent) - 1).encode()

    @classmethod
    def loads(cls, text):
        return cls.sent[int(text)]


def test_every_task_is_done_once_by_some_rank_and_all_ranks_work(ranks):
    engine, done = ranks(3), []
    for stage in range(3):
        tasks = [Task(n, (stage, n)) for n in range(40)]
        assert len(list(engine.run(partial(note, done), tasks))) == 40
    assert list(engine.run(partial(note, done), [])) == []
    engine.close()
    assert sorted(part for _, part in done) == [(s, n) for s in range(3) for n in range(40)]
    assert {name for name, _ in done} == {"MainThread", "rank 1", "rank 2"}


def test_an_error_of_any_rank_is_raised_by_rank_0_and_ends_the_others(ranks):
    engine = ranks(3)
    with pytest.raises(ValueError, match="row 7"):
        list(engine.run(partial(refuse, ValueError("row 7")), [Task(n, n) for n in range(9)]))
    engine.close()


def test_an_error_that_cannot_be_sent_arrives_as_its_text():
    sent = rank_workers.pickle.loads(rank_workers._pickled(Refusal("a.csv", 7)))
    assert str(sent) == "Refusal: a.csv: row 7"
    assert isinstance(rank_workers.pickle.loads(rank_workers._pickled(KeyError("x"))), KeyError)


def test_options_become_words_of_msrec_convert():
    words = words_of(["split=time", "hash=user_id=100x2", "histories=true", "overwrite=false"])
    assert words == ["--split=time", "--hash=user_id=100x2", "--histories"]
    assert words_of(["fractions=0.9,0,0.1"]) == ["--fractions", "0.9", "0", "0.1"]
    for option, message in (
        ("splits=time", "'splits=time' is not known here; known are bad_rows, fractions"),
        ("histories", "'histories' is not known here"),
        ("engine=ray", "'engine=ray' is not known here"),
        ("histories=yes", "histories must be true or false; got 'yes'"),
        ("last=x", "'--last'.* valid integer"),
        ("fractions=0.5", "'--fractions' requires 3"),
        ("split=", "'--split'.* is not one of 'random'"),
        ("hash=user_id", "--hash must look like user_id=100000"),
    ):
        with pytest.raises(ValueError, match=message):
            words_of([option])


def test_the_engine_ranks_outside_of_a_job_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with (
        pytest.raises(ValueError, match=r"as a job of several ranks: msrec launch convert"),
        make_engine("ranks", None, None),
    ):
        pass


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "raw").mkdir()
    write_raw(tmp_path / "raw")
    write_dataset(read_tables(tmp_path / "raw"), tmp_path / "whole", SplitChoice("user_last"))
    return tmp_path / "raw"


@pytest.mark.slow
def test_a_killed_rank_costs_no_part_that_is_done(raw, tmp_path):
    """The agent starts both ranks again, and they go on in the work folder."""
    words = ["convert", "raw", "app", "split=user_last", "part_rows=100", "-j", "1x2"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        job = subprocess.Popen([*LAUNCH, *words], cwd=tmp_path, stdout=file, stderr=file)
    results = tmp_path / ".app.parts"
    deadline = time.monotonic() + TIMEOUT_S
    while len(list(results.glob("encode/*/result.json"))) < 10:
        assert time.monotonic() < deadline, log.read_text()
        assert job.poll() is None, log.read_text()
        time.sleep(0.02)
    started = [
        child
        for child in psutil.Process(job.pid).children(recursive=True)
        if child.environ().get("RANK") == "1"
    ]
    times = {path: path.stat().st_mtime_ns for path in results.glob("encode/*/result.json")}
    started[0].kill()
    kept = {}
    while job.poll() is None:
        assert time.monotonic() < deadline, log.read_text()
        with suppress(FileNotFoundError):  # at the end the folder goes
            kept |= {path: path.stat().st_mtime_ns for path in times}
        time.sleep(0.02)
    assert job.returncode == 0, log.read_text()
    assert kept == times
    assert differences(tmp_path / "app", tmp_path / "whole") == []


@pytest.mark.slow
def test_a_bad_row_fails_the_job_in_one_sentence(raw, tmp_path):
    (raw / "users.parquet").unlink()
    words = ["convert", "raw", "app", "part_rows=500", "-j", "1x2"]
    done = subprocess.run(
        [*LAUNCH, *words], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 1
    output = done.stdout + done.stderr
    assert "users.parquet must exist" in output
    assert not (tmp_path / "app").exists()
