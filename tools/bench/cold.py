"""How long a person waits: for help, and for the first step of a training."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from msrec.tools.bench.harness.measure import Finding, interleaved, rates, sizes
from msrec.tools.bench.harness.report import machine, report
from msrec.tools.bench.harness.shapes import movielens_tables, shaped

BARE = "import torch, torchrec"
HELP_S, FIRST_STEP_S = 0.3, 3.0


def bench_cold(repeats: int) -> None:
    """Fresh processes each round.

    Args:
        repeats: rounds.
    """
    on = machine()
    python = [sys.executable]
    msrec = [*python, "-m", "msrec"]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        data = shaped(root / "data", movielens_tables(), 2, 4096)
        options = [f"dataset={data}", f"run_root={root}", "trainer.log_every=1"]
        config = root / "conf.yaml"
        config.write_text("trainer: { max_steps: 1 }\n")
        numbers = iter(range(1_000_000))
        took = interleaved(
            {
                "help": lambda: _run([*msrec, "--help"]),
                "train": lambda: _until(
                    [*msrec, "train", str(config), *options, f"run_id=r{next(numbers)}"], b" train "
                ),
                "python": lambda: _run([*python, "-c", "import typer, rich"]),
                "imports": lambda: _run([*python, "-c", BARE]),
            },
            repeats,
        )
    help_s, train_s, imports_s = (
        sorted(clock for clock, _ in took[name])[repeats // 2]
        for name in ("help", "train", "imports")
    )
    findings: list[Finding] = [
        sizes("msrec --help", help_s, HELP_S, "s, and the aim's", ("at most", 1.0)),
        sizes(
            "msrec train to its first step",
            train_s,
            imports_s + FIRST_STEP_S,
            "s, and the aim's",
            ("at most", 1.0),
            limit=f"the aim is bare imports of torch and torchrec ({imports_s:.1f} s) and 3 s",
        ),
        rates(
            "msrec --help against importing typer and rich",
            took["help"],
            took["python"],
            1,
            "starts/s",
        ),
        rates("msrec train against bare imports", took["train"], took["imports"], 1, "starts/s"),
    ]
    report("cold", "cold starts: fresh processes, files in the page cache", findings, on)


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _until(command: Sequence[str], word: bytes) -> None:
    """Until the process says a word; then it is ended.

    Raises:
        RuntimeError: it ended without it.
    """
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if word in line:
                process.kill()
                return
    raise RuntimeError(f"{' '.join(command)} said no {word!r}: {b''.join(said)[-2000:]!r}")
