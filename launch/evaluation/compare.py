"""Compares two runs on the same rows, label by label; refuses rows that are not the same."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from msrec.data.io.paths import AnyPath
from msrec.data.io.validation import StrictModel
from msrec.data.schema import Split
from msrec.launch.evaluation.evaluate import predictions_folder
from msrec.launch.evaluation.exact_results import label_rows
from msrec.launch.evaluation.results import ResultHistory, Results, load_results
from msrec.launch.evaluation.scored_rows.commit import COMMIT_FILE
from msrec.launch.evaluation.scored_rows.predictions import Predictions, load_predictions
from msrec.launch.trained_run import find_run
from msrec.model.metrics.definitions import Array
from msrec.model.metrics.differences import ALL, Difference, Differences, correct, differences
from msrec.model.metrics.exact import Grouping, MetricOptions, SortedRows


class Comparison(StrictModel):
    """Two runs on one split."""

    dataset: str
    split: str
    names: tuple[str, str]
    checkpoints: tuple[str, str]
    k: int
    metrics: Differences
    """Of the first label."""
    label: str = ""
    """Name of the first label; empty if an older version scored the rows."""
    labels: dict[str, Differences] = {}
    """Of the further labels."""
    combined: dict[str, Differences] = {}
    """Of the combined scores, judged by each binary label."""
    all_labels: list[str] = []
    """Labels that any of the runs has, also those that only one has."""
    calibrations: tuple[str | None, str | None] = (None, None)
    """Method by which the scores of each run were calibrated, if they were."""
    histories: tuple[ResultHistory | None, ResultHistory | None] = (None, None)
    """Ordered histories that the rows had in each run; None for a run that reads none."""

    @property
    def by_label(self) -> dict[str, Differences]:
        """Differences of every label, the first one first."""
        return {self.label: self.metrics} | self.labels


def find_predictions(path: Path, split: Split, data: AnyPath | None = None) -> Path:
    """Returns the predictions folder of a run folder or checkpoint, or `path` if it is one.

    Raises:
        FileNotFoundError: the path is none of these.
    """
    if (path / COMMIT_FILE).is_file():
        return path
    run, checkpoint = find_run(path)
    return predictions_folder(run, split, checkpoint, data)


def compare_runs(
    first: Path,
    second: Path,
    split: Split,
    data: AnyPath | None = None,
    k: int = MetricOptions().k,
    *,
    any_protocol: bool = False,
) -> Comparison:
    """Compares the predictions of two runs, checkpoints or folders of predictions.

    Raises:
        FileNotFoundError: one was not evaluated.
        ValueError: they did not score the same rows, or with histories of different protocols and
            without `any_protocol`.
    """
    one, other = (find_predictions(path, split, data) for path in (first, second))
    names = (first.name, second.name)
    if names[0] == names[1]:
        names = (str(first), str(second))
    return compare(one, other, names, k, any_protocol=any_protocol)


def compare(
    first: Path,
    second: Path,
    names: tuple[str, str],
    k: int = MetricOptions().k,
    *,
    any_protocol: bool = False,
) -> Comparison:
    """Compares two folders of predictions of the same rows.

    The difference of each metric is computed without each user in turn (the jackknife; above 10,000
    users, without each of 10,000 random groups of users). Its t-interval and p-value follow.
    The p-values are corrected by Holm's method, which is valid for dependent tests: scenarios and
    labels share users. All scenarios of all labels are one family of tests, see `correct`.

    Raises:
        FileNotFoundError: a folder has no predictions or no results.
        ValueError: the folders hold different rows, or the rows had histories of different
            protocols and `any_protocol` is false.

    Source:
        AUC: clustered DeLong (DeLong et al., Biometrics 1988; Obuchowski, Biometrics 1997) to order
        1 / users. Holm, Scandinavian Journal of Statistics 1979.
    """
    pair = load_predictions(first), load_predictions(second)
    results = load_results(first), load_results(second)
    scenarios = [list(result.metrics.scenarios) for result in results]
    labels = _common_labels(names, *results)
    _check_same_rows(names, *pair, scenarios, labels)
    histories = results[0].history, results[1].history
    if not any_protocol:
        _check_protocols(names, histories)
    groups = Grouping(scenarios[0], pair[0].scenario)
    options = MetricOptions(k=k, resamples=0)
    by_label: dict[str, Differences] = {}
    combined: dict[str, Differences] = {}
    for name, numbers in labels.items():
        kind = list(results[0].by_label.values())[numbers[0]].kind
        runs = list(zip(pair, numbers, strict=True))
        rows = [label_rows(run, number, options, kind) for run, number in runs]
        by_label[name] = _differences_by_group(rows, groups)
        if kind == "binary" and all(run.combined is not None for run in pair):
            ranked = [label_rows(run, n, options, "ranking", run.combined) for run, n in runs]
            combined[name] = _differences_by_group(ranked, groups)
    by_label, combined = correct(by_label), correct(combined)
    label = next(iter(by_label))
    return Comparison(
        dataset=pair[0].commit.dataset,
        split=pair[0].commit.split,
        names=names,
        checkpoints=(pair[0].commit.checkpoint, pair[1].commit.checkpoint),
        k=k,
        metrics=by_label.pop(label),
        label=label,
        labels=by_label,
        combined=combined,
        all_labels=list(dict.fromkeys(n for result in results for n in result.by_label if n)),
        calibrations=(results[0].calibration, results[1].calibration),
        histories=histories,
    )


def _common_labels(
    names: tuple[str, str], first: Results, second: Results
) -> dict[str, tuple[int, int]]:
    """Returns the labels of both runs, with their number in each.

    Results of an older version do not name their label, so that the first labels are compared.

    Raises:
        ValueError: the runs have no label in common.
    """
    one, two = list(first.by_label), list(second.by_label)
    if "" in (one[0], two[0]):
        return {one[0] or two[0]: (0, 0)}
    common = {name: (one.index(name), two.index(name)) for name in one if name in two}
    if not common:
        raise ValueError(
            f"{names[0]} and {names[1]} must have a label in common; they have {', '.join(one)} "
            f"and {', '.join(two)}."
        )
    return common


def _differences_by_group(runs: Sequence[SortedRows], groups: Grouping) -> Differences:
    """Returns the differences of two runs in one label, of all rows and of each scenario."""
    sums = [[rows.sums(group) for group in (None, *rows.rows_of(groups))] for rows in runs]
    by_group = [differences(*of_group) for of_group in zip(*sums, strict=True)]
    names = [ALL, *groups.names]
    no_rows = Difference(rows=0, users=0, first=None, second=None)
    return {
        metric: {name: of.get(metric, no_rows) for name, of in zip(names, by_group, strict=True)}
        for metric in by_group[0]
    }


def _check_protocols(
    names: tuple[str, str], histories: tuple[ResultHistory | None, ResultHistory | None]
) -> None:
    """Refuses histories of different protocols or events; a run without histories is fine."""
    if None in histories:
        return
    one, two = (f"{h.protocol} of {h.events} events" for h in histories if h is not None)
    if one != two:
        raise ValueError(
            f"{names[0]} and {names[1]} must have scored rows with the same protocol of histories; "
            f"found {one} and {two}. Train one of them with the other protocol, or compare them "
            "all the same with --any-protocol."
        )


def _check_same_rows(
    names: tuple[str, str],
    one: Predictions,
    two: Predictions,
    scenarios: list[list[str]],
    labels: dict[str, tuple[int, int]],
) -> None:
    start = f"{names[0]} and {names[1]} must have scored the same rows"
    advice = "Evaluate both on the same data and split."
    for fact, first, second in (
        ("the dataset", one.commit.dataset, two.commit.dataset),
        ("the split", one.commit.split, two.commit.split),
        ("the number of rows", len(one.row_id), len(two.row_id)),
        ("the scenarios", ", ".join(scenarios[0]), ", ".join(scenarios[1])),
    ):
        if first != second:
            raise ValueError(f"{start}; {fact} differs: {first} and {second}. {advice}")
    pairs: dict[str, tuple[Array, Array]] = {
        name: (getattr(one, name), getattr(two, name)) for name in ("row_id", "user", "scenario")
    }
    for label, (first_number, second_number) in labels.items():
        both = one.labels[first_number], two.labels[second_number]
        of_label = f" of {label}" if len(labels) > 1 else ""
        pairs |= {f"label{of_label}": (both[0].label, both[1].label)}
        pairs |= {f"weight{of_label}": (both[0].weight, both[1].weight)}
    for column, values in pairs.items():
        is_nan = values[0] != values[0]  # noqa: PLR0124 - also for integers
        differs = (values[0] != values[1]) & ~(is_nan & (values[1] != values[1]))  # noqa: PLR0124
        if differs.any():
            row = int(np.argmax(differs))
            both_values = f": {values[0][row]} and {values[1][row]}"
            raise ValueError(
                f"{start}; column {column} differs in {int(differs.sum()):,} rows, first in row_id "
                f"{one.row_id[row]}{'' if column in ('user', 'row_id') else both_values}. {advice}"
            )
