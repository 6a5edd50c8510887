"""Combined score of several labels by a formula such as `click^0.5 * watch`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

EXAMPLE = "click^0.5 * watch + 2 * like"
TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
        | (?P<name>[^\W\d]\w*) | `(?P<quoted>[^`]+)`
        | (?P<operator>[*+^])
        | (?P<end>$)
    )""",
    re.VERBOSE,
)


class Term(NamedTuple):
    """A product: factor * score^exponent * score^exponent ..., by the labels' names."""

    factor: float
    powers: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class CombinedScore:
    """A sum of products of powers of the labels' scores.

    Example:
        >>> parse_score("click^0.5 * watch + 2 * like", ["click", "like", "watch"])(
        ...     {"click": 0.25, "like": 0.125, "watch": 10.0}
        ... )
        5.25
    """

    formula: str
    terms: tuple[Term, ...]

    @property
    def labels(self) -> list[str]:
        """Labels of the formula, each once."""
        return list(dict.fromkeys(name for term in self.terms for name, _ in term.powers))

    def __call__(self, scores: Mapping[str, Any]) -> Any:
        """Returns the combined scores.

        Uses `*`, `+` and `**` only, so that it holds for numbers, numpy arrays and torch tensors.

        Args:
            scores: label -> its scores, all of one shape.
        """
        total: Any = None
        for term in self.terms:
            product: Any = None
            for name, exponent in term.powers:
                power = scores[name] if exponent == 1 else scores[name] ** exponent
                product = power if product is None else product * power
            if term.factor != 1:
                product = product * term.factor
            total = product if total is None else total + product
        return total


def parse_score(formula: str, labels: Sequence[str]) -> CombinedScore:
    """Reads a formula: products of labels, their powers and numbers, and sums of products.

    `click^0.5` is a power; its exponent is a number. A product has at least one label. A label
    whose name is no identifier is written in backquotes.

    Args:
        formula: the text.
        labels: names that it may use.

    Raises:
        ValueError: it is not such a formula, or names another label; names the position.

    Example:
        >>> parse_score("`long view`^2", ["long view"]).terms
        (Term(factor=1.0, powers=(('long view', 2.0),)),)
    """
    return CombinedScore(formula, _Parser(formula, labels).terms())


class _Parser:
    """Reads one formula from left to right; `kind` and `text` are those of the next token."""

    def __init__(self, formula: str, labels: Sequence[str]) -> None:
        self.formula, self.labels = formula, labels
        self.stop = 0
        self._advance()

    def terms(self) -> tuple[Term, ...]:
        terms = [self._term()]
        while self._skip("+"):
            terms.append(self._term())
        if self.kind != "end":
            raise self._error("*, + or the end")
        return tuple(terms)

    def _term(self) -> Term:
        factor, powers = 1.0, []
        while True:
            if self.kind == "number":
                factor *= self._number()
            elif self.kind == "name":
                powers.append(self._power())
            else:
                raise self._error("a label or a number")
            if not self._skip("*"):
                break
        if not powers:
            raise self._error("* and a label, since a product needs a label")
        return Term(factor, tuple(powers))

    def _power(self) -> tuple[str, float]:
        name = self.text
        if name not in self.labels:
            raise self._error("a label")
        self._advance()
        if not self._skip("^"):
            return name, 1.0
        if self.kind != "number":
            raise self._error("a number as exponent")
        return name, self._number()

    def _number(self) -> float:
        value = float(self.text)
        self._advance()
        return value

    def _skip(self, operator: str) -> bool:
        found = self.kind == "operator" and self.text == operator
        if found:
            self._advance()
        return found

    def _advance(self) -> None:
        match = TOKEN.match(self.formula, self.stop)
        if match is None:
            rest = self.formula[self.stop :]
            self.start = len(self.formula) - len(rest.lstrip())
            self.kind, self.text = "unknown", self.formula[self.start]
            return
        kind = str(match.lastgroup)
        self.kind = "name" if kind == "quoted" else kind
        self.text, self.start, self.stop = match[kind], match.start(kind), match.end()

    def _error(self, wanted: str) -> ValueError:
        found = "the end" if self.kind == "end" else repr(self.text)
        return ValueError(
            f"a combined score must be a formula such as {EXAMPLE!r}; expected {wanted} at "
            f"character {self.start + 1} of {self.formula!r}, found {found}. The labels are "
            f"{', '.join(self.labels)}."
        )
