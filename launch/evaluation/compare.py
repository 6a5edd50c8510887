"""Compares two runs on the same rows, label by label; refuses rows that are not the same."""

from collections.abc import Sequence
from pathlib import Path

from msrec.data.io.local_copies import local_copy
from msrec.data.io.paths import AnyPath, is_file
from msrec.data.io.validation import StrictModel
from msrec.data.schema import Split
from msrec.launch.evaluation.evaluate import predictions_folder
from msrec.launch.evaluation.exact_results import row_source
from msrec.launch.evaluation.results import ResultHistory, Results, load_results
from msrec.launch.evaluation.same_rows import check_same_rows
from msrec.launch.evaluation.scored_rows.commit import COMMIT_FILE, Commit
from msrec.launch.evaluation.scored_rows.parts import Parts
from msrec.launch.trained_run import find_run
from msrec.model.metrics.differences import ALL, Difference, Differences, correct, differences
from msrec.model.metrics.exact import MetricOptions
from msrec.model.metrics.user_sums import UserSums


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


def find_predictions(path: AnyPath, split: Split, data: AnyPath | None = None) -> Path:
    """Returns the predictions folder of a run folder or checkpoint, or `path` if it is one.

    Raises:
        FileNotFoundError: the path is none of these.
    """
    if is_file(path / COMMIT_FILE):
        return local_copy(path, COMMIT_FILE)
    run, checkpoint = find_run(path)
    return predictions_folder(run, split, checkpoint, data)


def compare_runs(
    first: AnyPath,
    second: AnyPath,
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
    pair = Parts.open(first), Parts.open(second)
    results = load_results(first), load_results(second)
    scenarios = [list(result.metrics.scenarios) for result in results]
    labels = _common_labels(names, *results)
    _check_facts(names, pair[0].commit, pair[1].commit, scenarios)
    check_same_rows(names, pair, labels)
    histories = results[0].history, results[1].history
    if not any_protocol:
        _check_protocols(names, histories)
    sources = [row_source(parts.folder, scenarios[0]) for parts in pair]
    options = MetricOptions(k=k, resamples=0)
    by_label: dict[str, Differences] = {}
    combined: dict[str, Differences] = {}
    for name, numbers in labels.items():
        kind = list(results[0].by_label.values())[numbers[0]].kind
        runs = list(zip(sources, numbers, strict=True))
        sums = [run.sums(number, "score", kind, options) for run, number in runs]
        by_label[name] = _differences_by_group(sums, scenarios[0])
        if kind == "binary" and all(run.has(number, "combined") for run, number in runs):
            ranked = [run.sums(number, "combined", "ranking", options) for run, number in runs]
            combined[name] = _differences_by_group(ranked, scenarios[0])
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


def _differences_by_group(
    sums: Sequence[Sequence[UserSums]], scenarios: Sequence[str]
) -> Differences:
    """Returns the differences of two runs in one label, of all rows and of each scenario."""
    by_group = [differences(*of_group) for of_group in zip(*sums, strict=True)]
    names = [ALL, *scenarios]
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


def _check_facts(
    names: tuple[str, str], one: Commit, two: Commit, scenarios: list[list[str]]
) -> None:
    """Refuses predictions that cannot be of the same rows."""
    for fact, first, second in (
        ("the dataset", one.dataset, two.dataset),
        ("the split", one.split, two.split),
        ("the number of rows", one.rows - one.left_out, two.rows - two.left_out),
        ("the scenarios", ", ".join(scenarios[0]), ", ".join(scenarios[1])),
    ):
        if first != second:
            raise ValueError(
                f"{names[0]} and {names[1]} must have scored the same rows; {fact} differs: "
                f"{first} and {second}. Evaluate both on the same data and split."
            )
