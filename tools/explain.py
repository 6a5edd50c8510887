"""`msrec explain`: what the knowledge does in a run, in the terminal and for its report."""

import logging
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from msrec.data.schema import Split
from msrec.launch.distributed import process_group, quiet_libraries
from msrec.launch.evaluation.explain import Explainer
from msrec.launch.evaluation.explanation_file import (
    FOLDER,
    SCENARIOS_FILE,
    WAYS,
    RowScore,
    ScenarioExplanation,
    UserExplanation,
    save_explanation,
    user_file,
)

SHADES = ("grey30", "grey50", "white", "yellow", "dark_orange", "red")
"""Of cosines from below -0.5 to 1."""


def explain(
    run: Path, users: list[str], scenario: bool, split: Split, rows: int, console: Console
) -> None:
    """Print the explanations and keep them in the run's folder.

    Args:
        run: a run folder.
        users: raw keys.
        scenario: compare the scenarios.
        split: whose rows are scored.
        rows: shown of a user; all are kept.
        console: where to print.

    Raises:
        FileNotFoundError, ValueError: see `Explainer`; or nothing was asked.
    """
    if not users and not scenario:
        raise ValueError("explain must be asked something: --user KEY, --scenario, or both.")
    quiet_libraries()
    logging.getLogger("msrec").setLevel(logging.WARNING)
    with process_group("cpu") as process:
        explainer = Explainer(run, process, split)
        for user in users:
            found = explainer.user(user)
            save_explanation(found, user_file(run, user))
            show_user(found, rows, console)
        if scenario:
            compared = explainer.scenarios()
            save_explanation(compared, run / FOLDER / SCENARIOS_FILE)
            show_scenarios(compared, console)
    console.print(f"kept in {run / FOLDER}; `msrec report` shows it", highlight=False)


def show_user(found: UserExplanation, most: int, console: Console) -> None:
    """The prompt, the answer, the neighbours, the layers and the rows of one user."""
    title = f"user {found.user}: {found.training_rows:,} training rows"
    show_prompt(title, found.prompt, found.text, console)
    if not found.has_vector:
        console.print("no vector of this user: the mean vector stands in")
    if found.nearest:
        near = ", ".join(f"{n.key} ({n.cosine:.3f})" for n in found.nearest)
        console.print(f"nearest users by vector (cosine): {near}", highlight=False)
    for layer in found.layers:
        console.print(
            f"user {layer.layer}: {layer.distance:.1%} away from the average user's; "
            f"{layer.rank:.0%} of the users are nearer to it",
            highlight=False,
        )
    if not found.rows:
        console.print(f"no rows of this user in the {found.split} split")
        return
    console.print(rows_table(found, most))
    losses = found.log_losses()
    console.print(
        f"log loss of the {len(found.rows)} rows: "
        + ", ".join(f"{WAYS[way]} {loss:.4f}" for way, loss in losses.items()),
        highlight=False,
    )


def show_prompt(title: str, prompt: str, text: str | None, console: Console) -> None:
    """What the LLM was told, and what it answered where it was asked to."""
    console.print(Panel(Text(prompt), title=title))
    if text is not None:
        console.print(Panel(Text(text or "(nothing)"), title="the LLM answered"))


def rows_table(found: UserExplanation, most: int) -> Table:
    """The first rows; a score is green where it is nearer to the label than the one with all."""
    table = Table(title=f"{found.split} rows, {min(most, len(found.rows))} of {len(found.rows)}")
    for head in ("item", "scenario", "label"):
        table.add_column(head)
    for way in found.ways:
        table.add_column(WAYS[way], justify="right")
    for row in found.rows[:most]:
        table.add_row(
            row.item, row.scenario, f"{row.label:.0f}", *(_score(row, way) for way in found.ways)
        )
    return table


def show_scenarios(found: ScenarioExplanation, console: Console) -> None:
    """The prompts and answers; matrices of cosines: the LLM's states, then each generated layer."""
    for name, prompt, text in zip(found.names, found.prompts, found.texts, strict=True):
        show_prompt(f"scenario {name}", prompt, text, console)
    for name, cosines in found.matrices():
        console.print(cosine_table(name, found.names, cosines))


def cosine_table(title: str, names: list[str], cosines: list[list[float]]) -> Table:
    """A heat map for the terminal."""
    table = Table(title=f"cosines of {title}")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for name, row in zip(names, cosines, strict=True):
        table.add_row(name, *(Text(f"{value:.3f}", style=_shade(value)) for value in row))
    return table


def _score(row: RowScore, way: str) -> Text:
    value = getattr(row, way)
    nearer = abs(value - row.label) < abs(row.score - row.label)
    return Text(f"{value:.4f}", style="green" if nearer and way != "score" else "")


def _shade(cosine: float) -> str:
    place = (cosine + 0.5) / 1.5 * (len(SHADES) - 1)
    return SHADES[min(max(round(place), 0), len(SHADES) - 1)]
