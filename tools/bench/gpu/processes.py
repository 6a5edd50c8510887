"""Lines of `msrec bench gpu` that start `msrec train` as a command: SIGTERM, and too many ranks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from msrec.launch.checkpointing.checkpoint import Checkpoints
from msrec.launch.checkpointing.commit import CHECKPOINTS, read_commit
from msrec.launch.config.run_config import RunConfig, save_config, with_overrides
from msrec.launch.training.preemption import STOPPED
from msrec.tools.bench.gpu.setting import Found, Setting

START_S, STOP_S, POLL_S = 120.0, 60.0, 0.2
"""Longest time until a command trains, and until it ends after SIGTERM."""


def sigterm(setting: Setting) -> Found:
    """SIGTERM during a training: saved, status 143, and the same command continues."""
    options = ("trainer.log_every=2", "trainer.epochs=100000", "trainer.global_batch=512")
    config = setting.config("sigterm", setting.random_data(8_000), *options, "backbone.name=mlp")
    log = config.run_dir / "metrics.jsonl"
    with _started(setting, config) as command:
        _wait_for(log, command)
        command.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        status = command.wait(STOP_S)
        stop_s = time.monotonic() - asked
    if status != STOPPED:
        raise ValueError(f"status must be {STOPPED} after SIGTERM; got {status}: {_tail(setting)}")
    newest = Checkpoints(config.run_dir / CHECKPOINTS).newest()
    if newest is None:
        raise ValueError("SIGTERM must leave a committed checkpoint; there is none.")
    step = int(read_commit(newest).state["step"])
    more = with_overrides(config, [f"trainer.max_steps={step + 5}"])
    with _started(setting, more) as command:
        status = command.wait(START_S)
    last = Checkpoints(config.run_dir / CHECKPOINTS).newest()
    if status or last is None or int(read_commit(last).state["step"]) != step + 5:
        raise ValueError(f"the command must go on to step {step + 5}: {_tail(setting)}")
    return Found(f"saved step {step} in {stop_s:.1f} s, went on to {step + 5}", {"stop_s": stop_s})


def ranks(setting: Setting) -> Found:
    """More ranks than GPUs: refused in one sentence, before a process group."""
    setting.require_gpu("a rank without a GPU")
    gpus = torch.cuda.device_count()
    config = setting.config("ranks", setting.random_data(8_000))
    numbers = {"RANK": gpus, "LOCAL_RANK": gpus, "LOCAL_WORLD_SIZE": gpus + 1}
    environment = {name: str(number) for name, number in numbers.items()}
    with _started(setting, config, environment | {"WORLD_SIZE": str(gpus + 1)}) as command:
        status = command.wait(START_S)
    sentence = _tail(setting)
    if status != 2 or "needs its own GPU" not in sentence:
        raise ValueError(f"the rank must be refused with status 2; got {status}: {sentence}")
    return Found(sentence)


def _output(setting: Setting) -> Path:
    return setting.folder / "command.txt"


def _tail(setting: Setting) -> str:
    """Returns the last line that the command printed."""
    lines = _output(setting).read_text().strip().splitlines()
    return lines[-1] if lines else "no output"


def _started(
    setting: Setting, config: RunConfig, environment: Mapping[str, str] | None = None
) -> "_Command":
    file = setting.folder / f"{config.run_id}.yaml"
    save_config(config, file)
    with _output(setting).open("w") as output:
        return _Command(
            [sys.executable, "-m", "msrec", "train", str(file)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )


class _Command(subprocess.Popen[bytes]):
    """A command that ends with its block."""

    def __exit__(self, *error: object) -> None:
        self.kill()
        super().__exit__(*error)  # type: ignore[arg-type]


def _wait_for(file: Path, command: "_Command") -> None:
    deadline = time.monotonic() + START_S
    while not file.exists() or not file.stat().st_size:
        if command.poll() is not None or time.monotonic() > deadline:
            raise ValueError(f"the command must write {file.name}; its status is {command.poll()}.")
        time.sleep(POLL_S)
