"""The options of `recal eval` for adapting to the test images."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable


def adaptation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add them, passed to the command as one `adaptation`, an `Adaptation` or None."""

    @click.option(
        "--adapt", type=click.Choice(["batch", "ema"]),
        help="Take BatchNorm statistics from the test images: of each batch, or averaged.",
    )  # fmt: skip
    @click.option("--adapt-batch", type=click.IntRange(1), help="Images a batch then.  [200]")
    @click.option(
        "--prior", type=click.FloatRange(0),
        help="Images that the network's own statistics count for in --adapt batch.  [0]",
    )  # fmt: skip
    @click.option(
        "--momentum", type=click.FloatRange(0, 1, min_open=True),
        help="Weight of a new batch in --adapt ema.  [0.1]",
    )  # fmt: skip
    @functools.wraps(function)
    def wrapper(
        *args: Any,
        adapt: str | None,
        adapt_batch: int | None,
        prior: float | None,
        momentum: float | None,
        seed: int,
        **kwargs: Any,
    ) -> Any:
        from recal.errors import UsageError
        from recal.evaluation.adaptation import Adaptation

        given = {"batch": adapt_batch, "prior": prior, "momentum": momentum}
        given = {name: value for name, value in given.items() if value is not None}
        for name, kinds in FITTING.items():
            if name in given and adapt not in kinds:
                option = "--adapt-batch" if name == "batch" else f"--{name}"
                raise UsageError(f"{option}: expected --adapt {' or '.join(kinds)} with it.")
        adaptation = Adaptation(kind=adapt, seed=seed, **given) if adapt else None  # type: ignore[arg-type]
        return function(*args, adaptation=adaptation, seed=seed, **kwargs)

    return wrapper


# the kinds of adaptation that an argument belongs to
FITTING = {"batch": ("batch", "ema"), "prior": ("batch",), "momentum": ("ema",)}
