"""Folders of predictions: their marker, their columns, and the names of these."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from msrec.data.io.atomic_files import write_text
from msrec.data.io.outputs import FolderKind
from msrec.data.io.validation import StrictModel, first_error
from msrec.data.schema import Split

COMMIT_FILE = "_COMMIT"
PREDICTIONS = FolderKind(
    "a folder of predictions",
    None,
    ("part-*.parquet", COMMIT_FILE, "results.json", "quarantine/*.parquet"),
)
COLUMNS = ("row_id", "scenario", "user", "label", "weight", "score")
"""Columns of every folder of predictions, with those of the first label."""
TRUTH = "p_click"
"""Optional column of the best possible score of the first label, known for simulated data; in a
dataset and in predictions."""
IMPRESSION, COMBINED = "impression", "combined"
"""Optional columns: id of the impression, and the combined score of all labels."""
INTEGERS = ("row_id", "scenario", IMPRESSION)


def label_column(name: str, number: int) -> str:
    """Returns the column of a label, by its number among the labels of a run.

    Example:
        >>> [label_column("score", number) for number in range(3)]
        ['score', 'score_1', 'score_2']
        >>> label_column("label_weight", 0)
        'label_weight_0'
        >>> label_column("truth", 0), label_column("truth", 1)
        ('p_click', 'truth_1')
    """
    if number == 0 and name != "label_weight":
        return TRUTH if name == "truth" else name
    return f"{name}_{number}"


def truth_name(labels: Sequence[str], label: str) -> str:
    """Returns the column of a dataset with the best possible scores of a label, if it has one.

    A true probability, or the expected value of a regression label; known for simulated data.

    Example:
        >>> truth_name(["click", "like"], "click"), truth_name(["click", "like"], "like")
        ('p_click', 'truth_like')
    """
    return TRUTH if label == labels[0] else f"truth_{label}"


class Commit(StrictModel):
    """Contents of `_COMMIT`, the marker that is written when every part is complete."""

    rows: int
    split: Split
    checkpoint: str
    dataset: str
    left_out: int = 0
    """Number of these rows that broke the schema and were excluded."""
    reasons: dict[str, int] = {}
    """Reason -> number of rows excluded for it."""
    labels: list[str] = []
    """Labels in the order of their columns; empty in folders of an older version: one label."""
    combined: str | None = None
    """Formula of the combined score, if there is one."""
    calibration: str | None = None
    """Method by which the scores of binary labels were calibrated, if they were."""

    @property
    def num_labels(self) -> int:
        """Number of labels with scores."""
        return len(self.labels) or 1


def write_commit(folder: Path, commit: Commit) -> Path:
    """Marks a folder of predictions as complete, in one step."""
    return write_text(folder / COMMIT_FILE, commit.model_dump_json())


def load_commit(folder: Path) -> Commit:
    """Reads the marker of a complete folder.

    Raises:
        FileNotFoundError: there is no marker: prediction was killed or never ran.
        ValueError: the file does not hold what `write_commit` writes.
    """
    path = folder / COMMIT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} must exist: it marks predictions as complete. Run `msrec evaluate` again."
        )
    try:
        return Commit.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}.") from None
