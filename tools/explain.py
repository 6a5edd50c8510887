"""`msrec explain`: prints the effect of knowledge and histories, and saves it for the report."""

import logging
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from msrec.data.io.names import visible
from msrec.data.schema import Split
from msrec.launch.explanations.explain import explanations
from msrec.launch.explanations.explanation_file import (
    FOLDER,
    VARIANTS,
    RowInterest,
    RowScore,
    ScenarioExplanation,
    UserExplanation,
)
from msrec.launch.reporting.explanation_sections import (
    INTEREST_RULE,
    MAX_TITLE,
    interest_table,
    label_text,
    loss_text,
    nearest_users,
    user_facts,
)

SHADES = ("grey30", "grey50", "white", "yellow", "dark_orange", "red")
"""Colours of cosines from -0.5 or less to 1."""


def explain(
    run: Path,
    users: list[str],
    scenario: bool,
    split: Split,
    rows: int,
    console: Console,
    label: str | None = None,
) -> None:
    """Prints explanations and saves them in the run folder.

    Args:
        run: a run folder.
        users: raw keys of the users to explain.
        scenario: also compares the scenarios.
        split: the split whose rows are scored.
        rows: most rows to print for a user; all rows are saved.
        console: the console to print to.
        label: label whose scores are explained; None is the first label of the run.

    Raises:
        FileNotFoundError, ValueError: see `Explainer`; or neither users nor scenarios are given.
    """
    logging.getLogger("msrec").setLevel(logging.WARNING)
    for explained in explanations(run, users, scenarios=scenario, split=split, label=label):
        if isinstance(explained, UserExplanation):
            show_user(explained, rows, console)
        else:
            show_scenarios(explained, console)
    console.print(f"saved in {run / FOLDER}; `msrec report` shows it", highlight=False)


def show_user(user: UserExplanation, max_rows: int, console: Console) -> None:
    """Prints the prompt, the neighbours, the layers, the rows and the attention of one user."""
    if user.prompt is None:
        console.print(f"user {user.user}", style="bold", highlight=False)
    else:
        _show_prompt(f"user {user.user}", user.prompt, user.text, console)
    for fact in user_facts(user):
        console.print(fact, highlight=False)
    if user.nearest:
        console.print(nearest_users(user), highlight=False)
    if not user.rows:
        console.print(f"No rows of this user in the {user.split} split.")
        return
    console.print(rows_table(user, max_rows))
    console.print(loss_text(user), highlight=False)
    if user.interest:
        console.print(INTEREST_RULE, highlight=False)
    for row in user.interest:
        show_interest(row, console)


def show_interest(row: RowInterest, console: Console) -> None:
    """Prints the events that a row attends to, and its scores without each part."""
    head, *events = interest_table(row)
    table = Table(title=f"history of {row.item} ({row.scenario}, label {label_text(row.label)})")
    table.add_column(head[0], max_width=MAX_TITLE, no_wrap=True, overflow="ellipsis")
    for number, name in enumerate(head[1:]):
        table.add_column(name, justify="right" if number > 1 else "left")
    for event in events:
        table.add_row(*event)
    console.print(table if events else f"No events before {row.item} ({row.scenario}).")
    scores = ", ".join(f"{label} {score:.4f}" for label, score in row.scores.items())
    console.print(f"score {scores}", highlight=False)


def _show_prompt(title: str, prompt: str, answer: str | None, console: Console) -> None:
    console.print(Panel(_text(prompt), title=Text(visible(title))))
    if answer is not None:
        console.print(Panel(_text(answer or "(empty)"), title="LLM answer"))


def _text(text: str) -> Text:
    return Text(visible(text, lines=True))


def rows_table(user: UserExplanation, max_rows: int) -> Table:
    """Returns the first rows with the score of each variant.

    A score is green if it is closer to the label than the score with all knowledge.
    """
    rows = user.rows[:max_rows]
    table = Table(title=f"{user.split} rows, {len(rows)} of {len(user.rows)}")
    for head in ("item", "scenario", "label"):
        table.add_column(head)
    for variant in user.variants:
        table.add_column(VARIANTS[variant], justify="right")
    for row in rows:
        scores = [_score(row, variant) for variant in user.variants]
        table.add_row(row.item, row.scenario, label_text(row.label), *scores)
    return table


def show_scenarios(scenarios: ScenarioExplanation, console: Console) -> None:
    """Prints the prompts and answers, and the cosines of the LLM states and generated layers."""
    texts = zip(scenarios.names, scenarios.prompts, scenarios.texts, strict=True)
    for name, prompt, answer in texts:
        _show_prompt(f"scenario {name}", prompt, answer, console)
    for title, cosines in scenarios.matrices():
        console.print(cosine_table(title, scenarios.names, cosines))


def cosine_table(title: str, names: list[str], cosines: list[list[float]]) -> Table:
    """Returns a heat map for the terminal."""
    table = Table(title=f"cosines of {title}")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for name, row in zip(names, cosines, strict=True):
        table.add_row(name, *(Text(f"{cosine:.3f}", style=_shade(cosine)) for cosine in row))
    return table


def _score(row: RowScore, variant: str) -> Text:
    score = getattr(row, variant)
    label = row.score if row.label is None else row.label
    is_closer = abs(score - label) < abs(row.score - label)
    return Text(f"{score:.4f}", style="green" if is_closer and variant != "score" else "")


def _shade(cosine: float) -> str:
    shade = round((cosine + 0.5) / 1.5 * (len(SHADES) - 1))
    return SHADES[min(max(shade, 0), len(SHADES) - 1)]
