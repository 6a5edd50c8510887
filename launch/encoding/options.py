"""Options of an encoding that do not change the vectors."""

from dataclasses import dataclass
from typing import Literal, get_args

from msrec.data.io.paths import AnyPath
from msrec.launch.config.run_config import Device

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Kind of device -> most tokens of a batch, if `llm.batch_tokens` is null. A GPU needs many
rows to be busy. Its number is a choice that was never measured."""
VLLM_BATCH_TOKENS = 1 << 20
"""The same for vLLM, which makes batches of its own from the prompts that it is given."""
Backend = Literal["transformers", "vllm"]
Level = Literal["scenario", "user", "item"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class EncodeOptions:
    """Options of an encoding that do not change the vectors, except for their rounding.

    Args:
        levels: levels to encode.
        previous: an earlier store; vectors of unchanged prompts are taken from it.
        trust_remote_code: run code that comes with the model.
        backend: library that runs the model.
        batch_tokens: most tokens of a batch, padding included; None chooses by the device.
        device: of the model, on each worker.
        save_every_s: seconds between two parts, the most work that a kill loses.
    """

    levels: tuple[Level, ...] = ("scenario", "user")
    previous: AnyPath | None = None
    trust_remote_code: bool = False
    backend: Backend = "transformers"
    batch_tokens: int | None = None
    device: Device = "auto"
    save_every_s: float = 10.0

    def tokens_of_batch(self, device: str) -> int:
        """Returns the most tokens of a batch on a kind of device, cpu or cuda."""
        default = VLLM_BATCH_TOKENS if self.backend == "vllm" else BATCH_TOKENS[device]
        return self.batch_tokens or default
