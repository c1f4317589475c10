"""What the user says about a checkpoint; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recal.networks.spec import NOTHING_GIVEN, ModelOverrides

if TYPE_CHECKING:
    from collections.abc import Mapping

    from recal.checkpoint.layouts import Layout


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """What the user says about a checkpoint, to complete or override what the file says.

    Attributes:
        layout: Name of a layout or a .toml file that describes one; None to detect it.
        roles: Which position is which branch, as `main=1,aux0=0` or a dictionary.
        ema: Whether to take the moving average of the weights instead of the weights.
        model: Architecture and preprocessing.
    """

    layout: str | Layout | None = None
    roles: str | Mapping[str, int] | None = None
    ema: bool = False
    model: ModelOverrides = NOTHING_GIVEN


AS_FOUND = ReadingOptions()
