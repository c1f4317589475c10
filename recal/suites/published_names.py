"""Whether a published set has the corruptions and severities that are wanted of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recal.declared import did_you_mean
from recal.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from recal.suites.suite import Cell, Suite


def check_corruptions(
    suite: Suite, where: Path, there: set[str], wanted: Sequence[str], suffix: str
) -> None:
    """Refuse a set without some of the wanted corruptions.

    Raises:
        InputError: It names them, and a file or folder of a similar name.
    """
    missing = [name for name in wanted if name not in there]
    if missing:
        strangers = sorted(there - set(suite.corruptions))
        hint = did_you_mean(missing[0], strangers).replace("Did you mean", "Is it")
        raise InputError(
            f"{where}: expected the published set, got one without "
            f"{', '.join(name + suffix for name in missing)}.{hint} Complete it, or leave "
            "corruptions out with --corruptions."
        )


def check_severities(
    suite: Suite, where: Path, found: set[tuple[str, str]], cells: Sequence[Cell]
) -> None:
    """Refuse severity folders that are missing, or that the suite does not know.

    Args:
        suite: Names its severities.
        where: For messages.
        found: Corruption and severity of each folder there is.
        cells: What is wanted.

    Raises:
        InputError: It names the corruption and the folders.
    """
    expected = {str(severity) for severity in suite.severities}
    for name in dict.fromkeys(str(cell.corruption) for cell in cells):
        there = {severity for corruption, severity in found if corruption == name}
        wanted = {str(cell.severity) for cell in cells if cell.corruption == name}
        if not wanted <= there or not there <= expected:
            raise InputError(
                f"{where}: {name}: expected the severities {', '.join(sorted(expected))} as "
                f"folders, got {', '.join(sorted(there)) or 'none'}."
            )
