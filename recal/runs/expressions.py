"""The language of `recal select`: weighted sums of a run's quantities, and limits on them.

It is Python's syntax for arithmetic with names, numbers, parentheses, `+ - * /`, and one of
`<= >= < >` in a limit. Whatever is not a weighted sum, such as the product of two quantities, is
refused.
"""

import ast
import operator
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
ABSENT = {
    "mean_corruption_error": "it needs every corruption and severity of a suite. Use corrupted, "
    "the accuracy over those that were evaluated",
    "mce": "that is of a whole suite with reference errors. Use mean_corruption_error",
    "relative_mce": "that is of a whole suite with reference errors and clean images",
    "clean": "no target has the cell of clean images",
    "corrupted": "the targets have no corrupted cell in common",
}


@dataclass(frozen=True)
class Limit:
    """A limit on a quantity: the margin is the side that has to be larger minus the other one.

    Attributes:
        left_text: The text left of the relation.
        strict: Whether the relation excludes equality.
    """

    text: str
    left_text: str
    left: Quantity
    margin: Quantity
    strict: bool

    def holds(self, metrics: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return whether the limit holds for metrics of cells, (R, C, 5) to (R,)."""
        margin = self.margin.of(metrics)
        return margin > 0 if self.strict else margin >= 0


def parse_sum(text: str, known: Mapping[str, Quantity], where: str) -> Quantity:
    """Read a weighted sum of the run's quantities, such as `0.5*clean + 0.5*corrupted`.

    `fog` stands for `fog_accuracy`. `where` is the option that the text was given for.

    Raises:
        UsageError: It is no weighted sum, or names a quantity that the run does not have.
    """
    with _messages(text, where):
        return _quantity(_value(_tree(text), known))


def parse_limit(text: str, known: Mapping[str, Quantity], where: str) -> Limit:
    """Read a limit, such as `mean_corruption_error <= 0.25`: two weighted sums and a relation.

    Raises:
        UsageError: It is no limit, or names a quantity that the run does not have.
    """
    with _messages(text, where):
        match _tree(text):
            case ast.Compare(ops=[ast.LtE() | ast.GtE() | ast.Lt() | ast.Gt() as relation]) as tree:
                left, right = _value(tree.left, known), _value(tree.comparators[0], known)
            case _:
                raise UsageError(f"expected such as 'corrupted>=0.7', got '{text}'.")
        at_most = isinstance(relation, ast.LtE | ast.Lt)
        margin = _quantity(right - left if at_most else left - right)
        return Limit(
            text=text,
            left_text=re.split("[<>]", text)[0].strip(),
            left=left if isinstance(left, Quantity) else margin * 0.0 + left,
            margin=margin,
            strict=isinstance(relation, ast.Lt | ast.Gt),
        )


@contextmanager
def _messages(text: str, where: str) -> Iterator[None]:
    """Say what is wrong with an expression, and where it was given."""
    try:
        with np.errstate(all="raise", under="ignore"):
            yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    except (TypeError, ZeroDivisionError) as error:
        raise UsageError(
            f"{where}: expected a weighted sum, got '{text}'. Multiply a quantity by a number, or "
            "divide it by one other than 0."
        ) from error
    except ArithmeticError as error:
        raise UsageError(f"{where}: expected finite numbers, got '{text}'.") from error
    except LookupError as error:
        raise UsageError(f"{where}: expected a quantity of the run, got '{text}'.") from error
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise UsageError(
            f"{where}: expected numbers, names and + - * / ( ) <= >=, got '{text}'."
        ) from error


def _tree(text: str) -> ast.expr:
    if len(text) > LONGEST:
        raise UsageError(f"expected at most {LONGEST} characters, got more.")
    return ast.parse(text.strip(), mode="eval").body


def _quantity(value: Quantity | float) -> Quantity:
    if isinstance(value, float):
        raise LookupError
    return value


def _value(node: ast.expr, known: Mapping[str, Quantity], depth: int = 0) -> Quantity | float:
    match node:
        case _ if depth > DEEPEST:
            raise RecursionError
        case ast.Name(id=name):
            return _named(name, known)
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            value: Quantity | float = float(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, known, depth + 1)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            sides = (_value(side, known, depth + 1) for side in (left, right))
            value = OPERATORS[type(op)](*sides)
        case _:
            raise SyntaxError
    if isinstance(value, float) and not np.isfinite(value):
        raise OverflowError
    return value


def _named(word: str, known: Mapping[str, Quantity]) -> Quantity:
    for name in (word, f"{word}_accuracy"):
        if name in known:
            return known[name]
    if word in ABSENT:
        raise UsageError(f"the run has no {word}: {ABSENT[word]}.")
    accuracies = [name for name in known if name.endswith("_accuracy")]
    groups = [n.removesuffix("_accuracy") for n in accuracies if not n.endswith("_top5_accuracy")]
    raise UsageError(
        f"expected one of {', '.join(groups)}, or such as clean_nll, got '{word}'."
        f"{did_you_mean(word, [*groups, *known])}"
    )
