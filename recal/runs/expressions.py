"""The language of `recal select`: weighted sums of a run's quantities, and limits on them.

It is Python's syntax for arithmetic with names, numbers, parentheses, `+ - * /`, and one of
`<= >= < >` in a limit. Whatever is not a weighted sum, such as the product of two quantities, is
refused.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recal.errors import UsageError, did_you_mean
from recal.runs.quantities import Quantity

LONGEST = 1000  # characters
DEEPEST = 200  # operators within each other; a sum of as many terms nests so deep
OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """A limit on a quantity: it holds where `margin` is 0 or more, or above 0 if it is strict.

    Attributes:
        text: The limit as it was written.
        left_text: The text left of the relation.
        left: The quantity left of the relation.
        margin: The side that has to be larger minus the other one.
        strict: Whether the relation excludes equality.
    """

    text: str
    left_text: str
    left: Quantity
    margin: Quantity
    strict: bool

    def holds(self, margin: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return for each value of the margin whether the limit holds."""
        return margin > 0 if self.strict else margin >= 0


def parse_sum(text: str, known: Mapping[str, Quantity], where: str) -> Quantity:
    """Read a weighted sum of quantities.

    Args:
        text: Such as `0.5*clean + 0.5*corrupted`.
        known: The run's quantities; `fog` stands for `fog_accuracy`.
        where: The option that the text was given for.

    Raises:
        UsageError: It is no weighted sum, or names a quantity that the run does not have.
    """
    reader = _Reader(text, known, where)
    return reader.quantity(reader.value(reader.tree()))


def parse_limit(text: str, known: Mapping[str, Quantity], where: str) -> Limit:
    """Read a limit, such as `mean_corruption_error <= 0.25`.

    Args:
        text: Two weighted sums with `<=`, `>=`, `<` or `>` between them.
        known: The run's quantities; `fog` stands for `fog_accuracy`.
        where: The option that the text was given for.

    Raises:
        UsageError: It is no limit, or names a quantity that the run does not have.
    """
    reader = _Reader(text, known, where)
    match reader.tree():
        case ast.Compare(ops=[ast.LtE() | ast.GtE() | ast.Lt() | ast.Gt() as relation]) as tree:
            left, right = reader.value(tree.left), reader.value(tree.comparators[0])
        case _:
            raise UsageError(f"{where}: expected such as 'corrupted>=0.7', got '{text}'.")
    at_most = isinstance(relation, ast.LtE | ast.Lt)
    margin = reader.quantity(right - left if at_most else left - right)
    return Limit(
        text=text,
        left_text=re.split("[<>]", text)[0].strip(),
        left=left if isinstance(left, Quantity) else margin * 0.0 + left,
        margin=margin,
        strict=isinstance(relation, ast.Lt | ast.Gt),
    )


@dataclass(frozen=True)
class _Reader:
    text: str
    known: Mapping[str, Quantity]
    where: str

    def tree(self) -> ast.expr:
        if len(self.text) > LONGEST:
            raise UsageError(f"{self.where}: expected at most {LONGEST} characters, got more.")
        try:
            return ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise self._refused() from error

    def quantity(self, value: Quantity | float) -> Quantity:
        if isinstance(value, float):
            raise UsageError(f"{self.where}: expected a quantity of the run, got '{self.text}'.")
        return value

    def value(self, node: ast.expr, depth: int = 0) -> Quantity | float:
        if depth > DEEPEST:
            raise self._refused()
        try:
            with np.errstate(all="raise", under="ignore"):
                return self._value(node, depth + 1)
        except (TypeError, ZeroDivisionError) as error:
            raise UsageError(
                f"{self.where}: expected a weighted sum, got '{self.text}'. Multiply a quantity by "
                "a number, or divide it by one other than 0."
            ) from error
        except (OverflowError, FloatingPointError) as error:
            raise UsageError(
                f"{self.where}: expected finite numbers, got '{self.text}'."
            ) from error

    def _value(self, node: ast.expr, depth: int) -> Quantity | float:
        match node:
            case ast.Name(id=name):
                return self._named(name)
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return _finite(float(number))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self.value(operand, depth)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                sides = self.value(left, depth), self.value(right, depth)
                return _finite(OPERATORS[type(op)](*sides))
        raise self._refused()

    def _named(self, word: str) -> Quantity:
        for name in (word, f"{word}_accuracy"):
            if name in self.known:
                return self.known[name]
        if word in ABSENT:
            raise UsageError(f"{self.where}: the run has no {word}: {ABSENT[word]}.")
        groups = [
            name.removesuffix("_accuracy")
            for name in self.known
            if name.endswith("_accuracy") and not name.endswith("_top5_accuracy")
        ]
        raise UsageError(
            f"{self.where}: expected one of {', '.join(groups)}, or such as clean_nll, got "
            f"'{word}'.{did_you_mean(word, [*groups, *self.known])}"
        )

    def _refused(self) -> UsageError:
        return UsageError(
            f"{self.where}: expected numbers, names and + - * / ( ) <= >=, got '{self.text}'."
        )


def _finite(value: Quantity | float) -> Quantity | float:
    if isinstance(value, float) and not np.isfinite(value):
        raise OverflowError
    return value


ABSENT = {
    "mean_corruption_error": "it needs every corruption and severity of a suite. Use corrupted, "
    "the accuracy over those that were evaluated",
    "mce": "that is of a whole suite with reference errors. Use mean_corruption_error",
    "relative_mce": "that is of a whole suite with reference errors and clean images",
    "clean": "no target has the cell of clean images",
    "corrupted": "the targets have no corrupted cell in common",
}
