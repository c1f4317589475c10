"""The small language of `recal select`: weighted sums of quantities, and limits on them.

    limit    = sum ("<=" | ">=" | "<" | ">") sum
    sum      = ["-"] product (("+" | "-") product)*
    product  = factor (("*" | "/") factor)*
    factor   = number | name | "(" sum ")"

A product of two quantities, and a quotient by one, are no weighted sums and are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from recal.errors import UsageError
from recal.runs.quantities import Quantity
from recal.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


TOKEN = re.compile(r"\s*(?:(\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+)|([A-Za-z_]\w*)|(<=|>=|[-+*/()<>]))")
DEEPEST = 20
LONGEST = 1000


@dataclass(frozen=True)
class Sum:
    """A weighted sum of quantities: weights by name, and a constant."""

    weights: Mapping[str, float] = field(default_factory=dict)
    constant: float = 0.0

    def quantity(self, known: Mapping[str, Quantity]) -> Quantity:
        """Return it as one quantity."""
        shape = next(iter(known.values())).weights.shape
        total = Quantity(np.zeros(shape), self.constant)
        for name, weight in self.weights.items():
            total = total + known[name] * weight
        return total


@dataclass(frozen=True)
class Limit:
    """A limit on a weighted sum: it holds where `margin` is 0 or more, or above 0 if strict."""

    text: str
    left_text: str
    left: Sum
    margin: Sum
    strict: bool

    def holds(self, margin: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell where it holds."""
        return margin > 0 if self.strict else margin >= 0


def parse_sum(text: str, known: Mapping[str, Quantity], where: str) -> Sum:
    """Read a weighted sum.

    Args:
        text: Such as `0.5*clean + 0.5*corrupted`.
        known: The run's quantities; `fog` stands for `fog_accuracy`.
        where: What the text was given for.

    Raises:
        UsageError: It is none, or names a quantity that the run does not have.
    """
    parser = _Parser(text, known, where)
    found = parser.sum()
    parser.expect_end()
    if not found.weights:
        raise UsageError(f"{where}: expected a quantity of the run, got '{text}'.")
    return found


def parse_limit(text: str, known: Mapping[str, Quantity], where: str) -> Limit:
    """Read a limit, such as `mean_corruption_error <= 0.25`.

    Raises:
        UsageError: It is none, or names a quantity that the run does not have.
    """
    parser = _Parser(text, known, where)
    left = parser.sum()
    relation = parser.take("<=", ">=", "<", ">")
    if not relation:
        raise UsageError(f"{where}: expected such as 'corrupted>=0.7', got '{text}'.")
    right = parser.sum()
    parser.expect_end()
    upper, lower = (right, left) if relation.startswith("<") else (left, right)
    margin = _added(upper, lower, -1.0)
    if not margin.weights:
        raise UsageError(f"{where}: expected a quantity of the run, got '{text}'.")
    return Limit(text, text[: text.index(relation)].strip(), left, margin, len(relation) == 1)


class _Parser:
    def __init__(self, text: str, known: Mapping[str, Quantity], where: str) -> None:
        self.text, self.known, self.where = text, known, where
        self.tokens = self._split()
        self.place = 0
        self.depth = 0

    def _split(self) -> list[str]:
        text = self.text.strip()
        if len(text) > LONGEST:
            raise UsageError(f"{self.where}: expected at most {LONGEST} characters, got more.")
        tokens, start = [], 0
        while start < len(text):
            found = TOKEN.match(text, start)
            if found is None:
                raise UsageError(
                    f"{self.where}: expected numbers, names and + - * / ( ) <= >=, got "
                    f"'{text[start:].strip()}'."
                )
            tokens.append(found.group().strip())
            start = found.end()
        return tokens

    def take(self, *wanted: str) -> str:
        """Take the next token if it is one of those, else return an empty text."""
        if self.place < len(self.tokens) and self.tokens[self.place] in wanted:
            self.place += 1
            return self.tokens[self.place - 1]
        return ""

    def expect_end(self) -> None:
        if self.place < len(self.tokens):
            raise UsageError(
                f"{self.where}: expected the end of '{self.text}', got '{self.tokens[self.place]}'."
            )

    def sum(self) -> Sum:
        sign = -1.0 if self.take("-") else 1.0
        total = _added(Sum(), self.product(), sign)
        while operator := self.take("+", "-"):
            total = _added(total, self.product(), 1.0 if operator == "+" else -1.0)
        return total

    def product(self) -> Sum:
        total = self.factor()
        while operator := self.take("*", "/"):
            other = self.factor()
            if operator == "*" and not total.weights:
                total, other = other, total
            if other.weights or (operator == "/" and other.constant == 0):
                raise UsageError(
                    f"{self.where}: expected a weighted sum, got '{self.text}'. Multiply a "
                    "quantity by a number, or divide it by one other than 0."
                )
            factor = other.constant if operator == "*" else 1 / other.constant
            total = _added(Sum(), total, factor)
        return total

    def factor(self) -> Sum:
        word = self.tokens[self.place] if self.place < len(self.tokens) else "nothing"
        self.place += 1
        if word == "(" and self.depth < DEEPEST:
            self.depth += 1
            found = self.sum()
            self.depth -= 1
            if not self.take(")"):
                raise UsageError(f"{self.where}: expected ')' in '{self.text}'.")
            return found
        if word[0].isdigit() or word[0] == ".":
            if not np.isfinite(float(word)):
                raise UsageError(f"{self.where}: expected a finite number, got {word}.")
            return Sum(constant=float(word))
        if not re.fullmatch(r"[A-Za-z_]\w*", word) or self.place > len(self.tokens):
            raise UsageError(
                f"{self.where}: expected a number or a name in '{self.text}', got {word}."
            )
        return Sum({self.resolve(word): 1.0})

    def resolve(self, name: str) -> str:
        for candidate in (name, f"{name}_accuracy"):
            if candidate in self.known:
                return candidate
        if name in ABSENT:
            raise UsageError(f"{self.where}: the run has no {name}: {ABSENT[name]}.")
        parts = [
            key.removesuffix("_accuracy") for key in self.known
            if key.endswith("_accuracy") and not key.endswith("_top5_accuracy")
        ]  # fmt: skip
        raise UsageError(
            f"{self.where}: expected one of {', '.join(parts)}, or such as clean_nll, got '{name}'."
            f"{did_you_mean(name, [*parts, *self.known])}"
        )


def _added(a: Sum, b: Sum, factor: float) -> Sum:
    weights = dict(a.weights)
    for name, weight in b.weights.items():
        weights[name] = weights.get(name, 0.0) + factor * weight
    return Sum(weights, a.constant + factor * b.constant)


ABSENT = {
    "mean_corruption_error": "that is of every corruption and severity of a suite. Take corrupted, "
    "the accuracy over those that there are",
    "mce": "that is of a whole suite with reference errors. Take mean_corruption_error",
    "relative_mce": "that is of a whole suite with reference errors and clean images",
    "clean": "no target has the cell of clean images",
    "corrupted": "no corrupted cell is there for every target",
}
