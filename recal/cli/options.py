"""The options of `recal eval` for adapting to the test images."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from recal.networks.spec import ModelOverrides


FORMATS = ("plain", "markdown", "csv", "json")
SPEC_FIELDS = ("arch", "classes", "family", "mean", "std", "size")


class Numbers(click.ParamType[tuple[float, ...]]):
    """Three numbers with commas between them, such as `0.485,0.456,0.406`."""

    name = "r,g,b"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Split the text at its commas; a default is a tuple already."""
        parts = value.split(",") if isinstance(value, str) else value
        try:
            numbers = tuple(float(part) for part in parts)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != 3:
            self.fail(f"expected three numbers such as 0.485,0.456,0.406, got {value!r}.", param)
        return numbers


class Listed(click.ParamType[tuple[str, ...]]):
    """Names with commas between them."""

    name = "a,b,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split the text at its commas; a default is a tuple already."""
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(str(part).strip() for part in parts)


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for architecture and preprocessing, passed on as `overrides`.

    They are `ModelOverrides`; what is not given is None there, and comes from the checkpoint or the
    family instead. Code that only a recal.toml names is not run without `--trust`: a name in a
    file never runs code.
    """

    @click.option(
        "--arch",
        help="wrn16_1, timm:NAME, torchvision:NAME, robustbench:DATASET/THREAT/NAME, "
        "python:FILE.py:CALLABLE.",
    )
    @click.option("--trust", is_flag=True, help="Run the python: code that recal.toml names.")
    @click.option("--classes", type=click.IntRange(1), help="Number of classes.")
    @click.option("--family", help="Family of policies: cifar, imagenet, sample, tiny.")
    @click.option("--mean", type=Numbers(), help="Channel means of RGB images in [0, 1].")
    @click.option("--std", type=Numbers(), help="Channel standard deviations, likewise.")
    @click.option("--size", type=click.IntRange(1), help="Side of the network's input in pixels.")
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        from recal.networks.spec import ModelOverrides
        from recal.schema import convert

        given = {field: kwargs.pop(field) for field in SPEC_FIELDS}
        _check_trust(given["arch"], kwargs.pop("trust"))
        overrides = convert(given, ModelOverrides, "options")
        return function(*args, overrides=overrides, **kwargs)

    return wrapper


def _check_trust(arch: str | None, trust: bool) -> None:
    source = click.get_current_context().get_parameter_source("arch")
    from_file = source is click.core.ParameterSource.DEFAULT_MAP
    if from_file and not trust and arch is not None and arch.startswith("python:"):
        raise click.UsageError(
            f"recal.toml names code as architecture, {arch}. Look at it, then say --trust, or give "
            "--arch yourself."
        )


def retyped() -> str:
    """Return the model options of the command line once more, for a command that is to follow."""
    import shlex

    context, words = click.get_current_context(), [""]
    for field in SPEC_FIELDS:
        if context.get_parameter_source(field) is click.core.ParameterSource.COMMANDLINE:
            value = context.params[field]
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{field} {shlex.quote(text)}")
    return " ".join(words)


def format_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--format` and its synonym `--json`, passed to the command as one text, `form`."""
    import functools

    @click.option(
        "--format", "form", type=click.Choice(FORMATS), default="plain", show_default=True,
        help="How the results are printed.",
    )  # fmt: skip
    @click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
    @functools.wraps(function)
    def wrapper(*args: Any, form: str, as_json: bool, **kwargs: Any) -> Any:
        return function(*args, form="json" if as_json else form, **kwargs)

    return wrapper


def refuse_given(names: Iterable[str], reason: str) -> None:
    """Refuse options of the command line that would be without effect.

    Args:
        names: The parameters' names, such as `batch_size`.
        reason: Said after the option's name.

    Raises:
        UsageError: One was typed; what recal.toml sets for every command is no matter.
    """
    from recal.errors import UsageError

    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            (option,) = (p.opts[0] for p in context.command.params if p.name == name)
            raise UsageError(f"{option}: {reason}")


def autocast_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--autocast`, passed to the command as its name or None; see `precision_named`."""
    return click.option(
        "--autocast", type=click.Choice(("bfloat16", "float16")),
        help="Reduced precision of the forward pass where torch holds it to be safe.",
    )(function)  # fmt: skip


def precision_named(name: str | None) -> torch.dtype | None:
    """Return the type of that name, or None for None."""
    import torch

    return None if name is None else getattr(torch, name)


def choose_device(name: str) -> str:
    """Return `cuda`, `mps` or `cpu` for `auto`, else the name itself.

    Raises:
        UsageError: torch does not know the device, or it is not there.
    """
    import torch

    from recal.errors import UsageError, reason

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"--device: expected one that is here, got '{name}' ({reason(error)})."
        ) from error
    return name


def default_workers() -> int:
    """Return the processes that prepare images: the cores but one, at most 8."""
    from recal.machine import cores_of_this_process

    return min(8, cores_of_this_process() - 1)


def reading_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about a checkpoint, passed on as `reading`, a `ReadingOptions`.

    They are `--layout`, `--roles`, `--ema` and those of `model_options`.
    """

    @click.option("--layout", help="How the file spells its branches: a name, or a .toml file.")
    @click.option("--roles", help="Which position is which branch, such as main=1,aux0=0.")
    @click.option("--ema", is_flag=True, help="Take the averaged weights that the file holds.")
    @model_options
    @functools.wraps(function)
    def wrapper(
        *args: Any,
        layout: str | None,
        roles: str | None,
        ema: bool,
        overrides: ModelOverrides,
        **kwargs: Any,
    ) -> Any:
        from recal.checkpoint.options import ReadingOptions

        reading = ReadingOptions(layout=layout, roles=roles, ema=ema, model=overrides)
        return function(*args, reading=reading, **kwargs)

    return wrapper


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
