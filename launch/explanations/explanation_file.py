"""Explanations of users and scenarios, as `msrec explain` saves them in the run folder."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from msrec.data.io.atomic_files import write_json
from msrec.data.io.names import safe_name
from msrec.data.io.validation import StrictModel

FOLDER, SCENARIOS_FILE = "explain", "scenarios.json"
VARIANTS = {
    "score": "with all",
    "without_user": "average user",
    "without_scenario": "average scenario",
    "without_both": "both average",
}
"""Scores of a row with and without knowledge: field of `RowScore` -> heading."""
Matrix = list[list[float]]


class Neighbour(StrictModel):
    """Another user and the cosine of the two standardised vectors."""

    key: str
    cosine: float


class LayerDistance(StrictModel):
    """Distance of a user's generated layer from the average user's layer.

    distance: ||W(z_u) - W(mean z)|| / ||W(mean z)||, Frobenius.
    rank: share of the sampled users whose layer is closer to the average.
    """

    layer: str
    distance: float
    rank: float


class RowScore(StrictModel):
    """Score of one row, with knowledge and without.

    Without the knowledge of the user, the layers are those of the average user; without that of the
    scenario, those of the average scenario. None if the run has no such layers.
    """

    row_id: int
    item: str
    scenario: str
    label: float | None
    """None if the row does not have the label."""
    score: float
    without_user: float | None = None
    without_scenario: float | None = None
    without_both: float | None = None


class AttendedEvent(StrictModel):
    """An earlier event of a row's user, with its attention by source.

    weight: at least 0; the weights of a source sum to at most 1, the rest is the weight of none.
    similarity: product of the event's item with the row's item, after the learned projection; a
        cosine without it.
    """

    item: str
    scenario: str
    label: float
    weight: dict[str, float]
    similarity: dict[str, float]


class RowInterest(StrictModel):
    """Score of one row by the interest blocks; `events` are its history, oldest first.

    Without a source, the normalised columns of its block are zeros, for the backbone and for the
    logits; without history, the row is scored as that of a user without events.
    """

    row_id: int
    item: str
    scenario: str
    label: float | None
    score: float
    without_source: dict[str, float]
    without_history: float
    events: list[AttendedEvent]

    @property
    def scores(self) -> dict[str, float]:
        """Heading -> score, with all and without each part."""
        without = {f"without {name}": score for name, score in self.without_source.items()}
        return {"with all": self.score, "without history": self.without_history, **without}


class UserExplanation(StrictModel):
    """Explanation of one user of a run; `rows` are the user's rows of a split."""

    user: str
    split: str
    label: str = "label"
    """Label whose scores are explained."""
    is_binary: bool = True
    """Whether it is binary; its scores are probabilities then."""
    prompt: str | None
    """Prompt of the LLM; None if the run has no meta networks of users or scenarios."""
    text: str | None
    """Answer of the LLM, if the store has it."""
    training_rows: int
    has_vector: bool
    nearest: list[Neighbour]
    layers: list[LayerDistance]
    rows: list[RowScore]
    interest: list[RowInterest] = []
    """The rows with the best scores, if the run has interest blocks."""

    @property
    def variants(self) -> list[str]:
        """The keys of `VARIANTS` that this run has; none if there are no rows."""
        return [name for name in VARIANTS if self.rows and getattr(self.rows[0], name) is not None]

    def losses(self) -> dict[str, float]:
        """Returns the loss of the rows that have the label, for each variant.

        It is the mean log loss of a binary label, and the RMSE of a regression label.
        """
        losses = {}
        rows = [row for row in self.rows if row.label is not None]
        label = np.array([row.label for row in rows], np.float64)
        for name in self.variants if rows else []:
            scores = np.array([getattr(row, name) for row in rows])
            p = np.clip(scores, 1e-12, 1 - 1e-12)
            if self.is_binary:
                losses[name] = float(-np.mean(np.log(np.where(label > 0, p, 1 - p))))
            else:
                losses[name] = float(np.sqrt(np.mean((scores - label) ** 2)))
        return losses


class ScenarioExplanation(StrictModel):
    """Similarity of the scenarios: (S, S) cosines of their LLM states and generated layers.

    The `_centred` matrices are computed after subtracting the mean over the scenarios, which
    removes what all scenarios share.
    """

    names: list[str]
    prompts: list[str]
    texts: list[str | None]
    """Answers of the LLM, if the store has them."""
    states: Matrix
    states_centred: Matrix
    layers: dict[str, Matrix]
    layers_centred: dict[str, Matrix]

    def matrices(self) -> Iterator[tuple[str, Matrix]]:
        """Yields a title and each matrix: the states, then each layer, both also centred."""
        pairs = [("LLM states", self.states, self.states_centred)]
        pairs += [
            (f"generated {name}", cosines, self.layers_centred[name])
            for name, cosines in self.layers.items()
        ]
        for title, cosines, centred in pairs:
            yield title, cosines
            yield f"{title}, mean subtracted", centred


def user_file(run_dir: Path, user: str) -> Path:
    """Returns the path of a user's explanation."""
    return run_dir / FOLDER / f"user-{safe_name(user)}.json"


def save_explanation(explanation: UserExplanation | ScenarioExplanation, path: Path) -> None:
    """Writes an explanation in one step; `msrec report` shows every one in the run folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, explanation.model_dump(mode="json"))


def load_explanations(run_dir: Path) -> tuple[list[UserExplanation], ScenarioExplanation | None]:
    """Reads all explanations in a run folder."""
    folder = run_dir / FOLDER
    users = [
        UserExplanation.model_validate_json(path.read_text())
        for path in sorted(folder.glob("user-*.json"))
    ]
    path = folder / SCENARIOS_FILE
    if not path.is_file():
        return users, None
    return users, ScenarioExplanation.model_validate_json(path.read_text())
