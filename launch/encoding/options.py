"""Options of an encoding that do not change the vectors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Kind of device -> most tokens of a batch, if `llm.batch_tokens` is null. A GPU needs many
rows to be busy. Its number is a choice that was never measured."""
Level = Literal["scenario", "user", "item"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class EncodeOptions:
    """Options of an encoding that do not change the vectors.

    Args:
        levels: levels to encode.
        previous: an earlier store; vectors of unchanged prompts are taken from it.
        trust_remote_code: run code that comes with the model.
        batch_tokens: most tokens of a batch, padding included.
        rank: of this process, in [0, world_size).
        world_size: number of processes that share the work.
        device: of the model.
        save_every_s: seconds between two parts, the most work that a kill loses.

    Raises:
        ValueError: `rank` is out of range.
    """

    levels: tuple[Level, ...] = ("scenario", "user")
    previous: Path | None = None
    trust_remote_code: bool = False
    batch_tokens: int = BATCH_TOKENS["cpu"]
    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    save_every_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank must be in [0, world_size); got {self.rank} of {self.world_size}."
            )
