"""What `msrec explain` found, as it is kept in a run's folder and shown by the report."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from msrec.data.io.atomic_files import write_json

FOLDER, SCENARIOS_FILE = "explain", "scenarios.json"
WAYS = {
    "score": "with all",
    "without_user": "average user",
    "without_scenario": "average scenario",
    "without_both": "both average",
}
"""Ways to score a row (fields of `RowScore`), and what they are called."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Neighbour(_Part):
    """Another key, and the cosine of the standardised vectors."""

    key: str
    cosine: float


class LayerDistance(_Part):
    """How far a generated layer is from the average user's one.

    distance: ||W(z_u) - W(mean z)|| / ||W(mean z)||, Frobenius.
    rank: share of the sampled users whose layer is nearer to the average.
    """

    layer: str
    distance: float
    rank: float


class RowScore(_Part):
    """One row: what the model says, and what it says without knowledge.

    Without the user's knowledge the layers are the average user's, without the scenario's the
    average scenario's; None where the run has no such layers.
    """

    row_id: int
    item: str
    scenario: str
    label: float
    score: float
    without_user: float | None
    without_scenario: float | None
    without_both: float | None


class UserExplanation(_Part):
    """All about one user of a run; `rows` are those of a split."""

    user: str
    split: str
    prompt: str
    text: str | None
    """What the LLM answered, where the store keeps it."""
    training_rows: int
    has_vector: bool
    nearest: list[Neighbour]
    layers: list[LayerDistance]
    rows: list[RowScore]

    @property
    def ways(self) -> list[str]:
        """The ways to score a row that this run has, of `WAYS`; none without rows."""
        return [w for w in WAYS if self.rows and getattr(self.rows[0], w) is not None]

    def log_losses(self) -> dict[str, float]:
        """Mean log loss of the rows for each way to score them."""
        found = {}
        label = np.array([row.label for row in self.rows])
        for name in self.ways:
            values = np.array([getattr(row, name) for row in self.rows])
            p = np.clip(values, 1e-12, 1 - 1e-12)
            found[name] = float(-np.mean(np.log(np.where(label > 0, p, 1 - p))))
        return found


class ScenarioExplanation(_Part):
    """How alike scenarios are, (S, S) cosines each: in the LLM's states and in generated layers.

    `centred` less their mean over the scenarios: what is said beyond what all share.
    """

    names: list[str]
    prompts: list[str]
    texts: list[str | None]
    """What the LLM answered, where the store keeps it."""
    states: list[list[float]]
    states_centred: list[list[float]]
    layers: dict[str, list[list[float]]]
    layers_centred: dict[str, list[list[float]]]

    def matrices(self) -> Iterator[tuple[str, list[list[float]]]]:
        """Each matrix by what it is of: the states, then each layer, as it is and centred."""
        pairs = [("LLM states", self.states, self.states_centred)]
        pairs += [
            (f"generated {name}", cosines, self.layers_centred[name])
            for name, cosines in self.layers.items()
        ]
        for name, whole, centred in pairs:
            yield name, whole
            yield f"{name}, less their mean", centred


def user_file(run_dir: Path, user: str) -> Path:
    """Where the explanation of a user is kept."""
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in user)
    return run_dir / FOLDER / f"user-{safe}.json"


def save_explanation(found: UserExplanation | ScenarioExplanation, path: Path) -> None:
    """Write it in one step; `msrec report` shows what it finds in a run's folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found.model_dump(mode="json"))


def load_explanations(run_dir: Path) -> tuple[list[UserExplanation], ScenarioExplanation | None]:
    """What `msrec explain` left in a run's folder."""
    folder = run_dir / FOLDER
    users = [
        UserExplanation.model_validate_json(path.read_text())
        for path in sorted(folder.glob("user-*.json"))
    ]
    path = folder / SCENARIOS_FILE
    found = ScenarioExplanation.model_validate_json(path.read_text()) if path.is_file() else None
    return users, found
