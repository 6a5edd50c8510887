"""Formulas of a combined score."""

import numpy as np
import pytest
import torch

from msrec.model.metrics.combined import parse_score

LABELS = ["click", "like", "watch", "long view (s)"]
CLICK, LIKE, WATCH = (np.array(v) for v in ([0.25, 0.04], [0.5, 0.1], [3.0, 20.0]))
SCORES = {"click": CLICK, "like": LIKE, "watch": WATCH, "long view (s)": WATCH / 2}


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("click", CLICK),
        ("click^0.5 * watch^1.0", CLICK**0.5 * WATCH),
        ("click*like *watch", CLICK * LIKE * WATCH),
        ("2 * click + 0.5*like^2*watch", 2 * CLICK + 0.5 * LIKE**2 * WATCH),
        ("click * 3 * click^-1 + -1e-1*like", 3 + 0 * CLICK - 0.1 * LIKE),
        ("`long view (s)`^.5 * `click`", (WATCH / 2) ** 0.5 * CLICK),
    ],
)
def test_a_formula_is_what_it_says(formula, expected):
    score = parse_score(formula, LABELS)
    np.testing.assert_allclose(score(SCORES), expected, rtol=1e-12)
    tensors = {name: torch.from_numpy(values) for name, values in SCORES.items()}
    np.testing.assert_allclose(score(tensors).numpy(), expected, rtol=1e-12)
    assert score.formula == formula


def test_a_formula_names_its_labels_once():
    assert parse_score("watch * click + watch", LABELS).labels == ["watch", "click"]


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("", "expected a label or a number at character 1 of '', found the end"),
        ("click * ", "expected a label or a number at character 9 .*, found the end"),
        ("click ** 2", r"expected a label or a number at character 8 of .*, found '\*'"),
        ("click^like", "expected a number as exponent at character 7 .*, found 'like'"),
        ("click + share", "expected a label at character 9 .*, found 'share'"),
        ("click / like", "expected .* at character 7 .*, found '/'"),
        ("(click + like)", r"at character 1 of .*, found '\('"),
        ("click like", r"expected \*, \+ or the end at character 7 .*, found 'like'"),
        ("click - like", r"expected \*, \+ or the end at character 7 .*, found '-'"),
        ("2 + click", "since a product needs a label at character 3"),
        ("__import__('os')", "expected a label at character 1 .*, found '__import__'"),
        ("`like", "at character 1 of .*, found '`'"),
    ],
)
def test_anything_else_is_refused_with_its_position(formula, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_score(formula, LABELS)
    assert str(error.value).endswith("The labels are click, like, watch, long view (s).")
