"""Prints the drift of every column as a table or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from msrec.data.io.paths import AnyPath
from msrec.launch.console import wide_console
from msrec.launch.evaluation.drift import Drift, measure_drift


def print_drift(
    reference: AnyPath, current: AnyPath, fail_above: float | None, *, as_json: bool
) -> int:
    """Prints the drift of every column.

    Returns:
        The exit status: 1 if the PSI of a column is above `fail_above`.
    """
    drifts, skipped = measure_drift(reference, current)
    if as_json:
        print(json.dumps([asdict(drift) | {"shift": drift.verdict} for drift in drifts], indent=1))
    else:
        console = wide_console()
        console.print(_drift_table(drifts, f"{reference} -> {current}"))
        for sentence in skipped:
            console.print(sentence, highlight=False)
    return int(fail_above is not None and drifts[0].psi > fail_above)


def _drift_table(drifts: Sequence[Drift], title: str) -> Table:
    table = Table(title=title)
    for head in ("column", "psi", "noise", "shift", "bins", "unseen", "empty before", "empty now"):
        table.add_column(head, justify="left" if head in ("column", "shift") else "right")
    for drift in drifts:
        table.add_row(
            drift.column,
            f"{drift.psi:.4f}",
            f"{drift.noise:.4f}",
            drift.verdict,
            str(drift.bins),
            "" if drift.unseen is None else f"{drift.unseen:.2%}",
            *(f"{share:.2%}" for share in drift.empty),
        )
    return table
