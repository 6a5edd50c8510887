"""Builds indices of histories with progress bars, and describes them in a table."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from msrec.data.histories.build import PROTOCOLS, build_histories
from msrec.data.loading.quarantine import Policy
from msrec.data.schema import EventChoice, EventOrder, HistoryProtocol, Schema
from msrec.launch.console import PlainConsole
from msrec.tools.progress_bars import progress_bars


def make_histories(
    dataset: Path,
    protocols: Sequence[HistoryProtocol] = PROTOCOLS,
    events: EventChoice = "all",
    order: EventOrder = "timestamp",
    faults: Policy = "fail",
    console: Console | None = None,
) -> Schema:
    """Builds indices of histories and prints their counts; see `build_histories`."""
    console = console or PlainConsole()
    with progress_bars(console) as progress:
        schema = build_histories(dataset, protocols, events, order, faults, progress)
    console.print(histories_table(schema))
    names = ", ".join(protocols)
    console.print(f"wrote {dataset}/histories: {names}", highlight=False, soft_wrap=True)
    return schema


def check_protocols(names: Sequence[str]) -> list[HistoryProtocol]:
    """Returns the names as protocols, each once; both protocols if there is no name.

    Raises:
        ValueError: a name is unknown.
    """
    for name in names:
        if name not in PROTOCOLS:
            raise ValueError(f"--protocol must be {' or '.join(PROTOCOLS)}; got {name!r}.")
    return [protocol for protocol in PROTOCOLS if not names or protocol in names]


def histories_table(schema: Schema) -> Table:
    """Returns the indices of histories of a dataset, with the lengths of each split."""
    table = Table(title=f"{schema.name}: histories", caption_justify="left")
    for head in ("protocol", "split"):
        table.add_column(head)
    for head in ("rows", "without history", "median length", "95 %"):
        table.add_column(head, justify="right")
    captions = []
    for protocol, record in schema.histories.items():
        captions.append(
            f"{protocol}: {record.num_events:,} events of {record.num_users:,} users "
            f"({record.events} rows), ordered by {record.order}"
        )
        for number, (split, lengths) in enumerate(record.lengths.items()):
            table.add_row(
                "" if number else protocol,
                split,
                f"{lengths.rows:,}",
                f"{lengths.without_history:,} ({lengths.without_history / lengths.rows:.1%})",
                f"{lengths.median:,}",
                f"{lengths.p95:,}",
            )
        table.add_section()
    table.caption = "\n".join(captions)
    return table
