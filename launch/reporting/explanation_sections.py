"""Builds the report's sections on explained users and scenarios, as `msrec explain` saved them."""

from msrec.launch.explanations.explanation_file import (
    VARIANTS,
    RowInterest,
    ScenarioExplanation,
    UserExplanation,
)
from msrec.launch.reporting.figures import attention_figure, cosine_figure
from msrec.launch.reporting.page import Block, DataTable, Details, Figures, Rows, Section, Text
from msrec.launch.reporting.result_tables import format_value

MAX_ROWS = 50
"""Rows of an explained user that a page shows."""
MAX_TITLE = 40
"""Characters of a title in a figure or a table of the terminal."""
INTEREST_RULE = (
    "Without a source, the normalised columns of its interest block are replaced by zeros, for the "
    "backbone and for the logits. Without history, the row is scored as that of a user without "
    "events. The weights of a source sum to at most 1; the rest is the weight of attending to "
    "nothing."
)


def scenario_section(run: str, explanation: ScenarioExplanation) -> Section:
    """Returns heat maps of the similarity between scenarios, and the prompts of the LLM."""
    caption = "Cosine similarity between scenarios."
    figures = [
        cosine_figure(title, caption, explanation.names, cosines)
        for title, cosines in explanation.matrices()
    ]
    blocks: list[Block] = [Figures(figures)]
    texts = zip(explanation.names, explanation.prompts, explanation.texts, strict=True)
    for name, prompt, answer in texts:
        content = [Text(prompt, "wrapped")]
        if answer is not None:
            content += [Text("LLM answer:"), Text(answer or "(empty)", "wrapped")]
        blocks.append(Details(f"Prompt of {name}", content))
    return Section(f"Scenario similarity in {run}", blocks)


def user_section(run: str, user: UserExplanation) -> Section:
    """Returns the prompt, the neighbours, the layers and the scored rows of one user."""
    blocks: list[Block] = [Text(" ".join(user_facts(user)))]
    if user.nearest:
        blocks.append(Text(nearest_users(user)))
    if user.prompt is not None:
        blocks.append(Details("Prompt", [Text(user.prompt, "wrapped")]))
    if user.text is not None:
        answer = Text(user.text or "(empty)", "wrapped")
        blocks.append(Details("LLM answer", [answer], is_open=True))
    if user.rows:
        head = ["item", "scenario", "label", *(VARIANTS[name] for name in user.variants)]
        rows = [
            [row.item, row.scenario, label_text(row.label)]
            + [format_value(getattr(row, name)) for name in user.variants]
            for row in user.rows[:MAX_ROWS]
        ]
        caption = f"{user.split} rows, {len(rows)} of {len(user.rows)}"
        blocks += [DataTable([head, *rows], caption), Text(f"{loss_text(user)}.")]
    else:
        blocks.append(Text(f"No rows in the {user.split} split."))
    return Section(f"User {user.user} in {run}", blocks)


def interest_section(run: str, user: UserExplanation) -> Section:
    """Returns the events that the best-scored rows of a user attend to; empty without blocks."""
    blocks: list[Block] = [Text(INTEREST_RULE)] if user.interest else []
    for row in user.interest:
        name = f"{row.item}, {row.scenario}"
        scores = ", ".join(f"{label} {score:.4f}" for label, score in row.scores.items())
        blocks.append(Text(f"{name}: label {label_text(row.label)}, score {scores}."))
        if not row.events:
            blocks.append(Text("No earlier events."))
            continue
        sources = list(row.without_source)
        weights = {source: [event.weight[source] for event in row.events] for source in sources}
        titles = [f"{event.item[:MAX_TITLE]} ({event.label:.0f})" for event in row.events]
        caption = "Attention to each earlier event, newest at the top; its label in parentheses."
        blocks.append(Figures([attention_figure(name, caption, titles, weights)], "wide"))
        table = DataTable(interest_table(row), f"History of {name}")
        blocks.append(Details("Events and similarities", [table]))
    return Section(f"Interest of user {user.user} in {run}", blocks)


def interest_table(row: RowInterest) -> Rows:
    """Returns the events of a row, newest first: weight and similarity by source, a head first."""
    sources = list(row.without_source)
    columns = [f"{what} {source}" for source in sources for what in ("weight", "similarity")]
    rows: Rows = [["item", "scenario", "label", *columns]]
    for event in reversed(row.events):
        numbers = [
            format_value(values[source])
            for source in sources
            for values in (event.weight, event.similarity)
        ]
        rows.append([event.item, event.scenario, f"{event.label:.0f}", *numbers])
    return rows


def user_facts(user: UserExplanation) -> list[str]:
    """Returns sentences on the training rows, the vector and the generated layers of a user."""
    facts = [f"{user.training_rows:,} training rows."]
    if not user.has_vector and user.prompt is not None:
        facts.append("No vector: the mean vector is used instead.")
    facts += [
        f"User {layer.layer} is {layer.distance:.1%} away from the average user's; "
        f"{layer.rank:.0%} of the users are closer to it."
        for layer in user.layers
    ]
    return facts


def nearest_users(user: UserExplanation) -> str:
    """Returns the nearest users with their cosines as text."""
    nearest = ", ".join(f"{other.key} ({other.cosine:.3f})" for other in user.nearest)
    return f"Nearest users by vector (cosine): {nearest}"


def loss_text(user: UserExplanation) -> str:
    """Returns the loss of all rows of a user, with and without knowledge, as text."""
    losses = ", ".join(f"{VARIANTS[name]} {loss:.4f}" for name, loss in user.losses().items())
    count = sum(row.label is not None for row in user.rows)
    what = "Log loss" if user.is_binary else "RMSE"
    return f"{what} of the {count} rows with {user.label}: {losses or 'none'}"


def label_text(label: float | None) -> str:
    """Returns the label of a row as text."""
    return "none" if label is None else f"{label:g}"
