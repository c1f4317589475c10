"""ImageNet's classes, in the order of the logits."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

from recal.errors import InputError


@lru_cache
def wnids(name: str) -> tuple[str, ...]:
    """Return ImageNet's synsets in the order of the logits, from timm's list of them.

    Args:
        name: `imagenet` for all 1000, `imagenet_a` or `imagenet_r` for 200 of them.
    """
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    # read without importing timm, which would import torch
    path = Path(spec.origin).parent / "data" / "_info" / f"{name}_synsets.txt"
    try:
        return tuple(path.read_text(encoding="utf-8").split())
    except OSError as error:
        raise InputError(f"{path}: expected timm's list of classes, got none.") from error
