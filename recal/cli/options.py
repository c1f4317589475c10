"""Options that several commands share: each has one spelling, one type and one help text."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch

    from recal.checkpoint.layouts import ReadingOptions
    from recal.networks.spec import ModelOverrides

Decorator: TypeAlias = "Callable[[Any], Any]"

FORMATS = ("plain", "markdown", "csv", "json")
MODEL_FIELDS = ("arch", "classes", "family", "mean", "std", "size")
READING_FIELDS = ("layout", "roles", "ema", "overrides")
# the kinds of adaptation that an option belongs to
ADAPTATION_OPTIONS = {"prior": "batch", "momentum": "ema"}

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(1)


class Numbers(click.ParamType[tuple[float, ...]]):
    """Three numbers separated by commas, such as `0.485,0.456,0.406`."""

    name = "r,g,b"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Split the text at its commas; a list of recal.toml is taken as it is."""
        try:
            numbers = tuple(float(part) for part in _parts(value))
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != 3:
            self.fail(f"expected three numbers such as 0.485,0.456,0.406, got {value!r}.", param)
        return numbers


class Counts(click.ParamType[tuple[int, ...]]):
    """Integers separated by commas, such as `1,8,64`.

    Args:
        minimum: The smallest integer that is accepted.
    """

    name = "n,n,..."

    def __init__(self, minimum: int = 1) -> None:
        self.minimum = minimum

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Split the text at its commas; a list of recal.toml is taken as it is."""
        parts = [str(part).strip() for part in _parts(value)]
        if not all(part.isdecimal() and int(part) >= self.minimum for part in parts):
            self.fail(f"expected integers from {self.minimum} such as 1,2,3, got {value!r}.", param)
        return tuple(map(int, parts))


class Names(click.ParamType[tuple[str, ...]]):
    """Names separated by commas, such as `main,aux0`."""

    name = "a,b,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split the text at its commas; a list of recal.toml is taken as it is."""
        return tuple(str(part).strip() for part in _parts(value))


def _parts(value: Any) -> list[Any]:
    if isinstance(value, str):
        return value.split(",")
    return list(value) if isinstance(value, (list, tuple)) else [value]


def examples(*lines: str) -> str:
    """Return the end of a command's help: example command lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def option(
    name: str,
    help_text: str,
    kind: click.ParamType[Any] | None = None,
    default: object = None,
    *,
    shown: str | None = None,
    **attributes: Any,
) -> Decorator:
    """Return a decorator that adds an option to a command.

    Args:
        name: The option, such as `--samples`.
        help_text: What the option is, as a phrase that makes sense alone.
        kind: The type of its value; None is text.
        default: The default, which click prints.
        shown: The default as printed, where it depends on other things.
        **attributes: Further arguments of `click.option`.
    """
    names = ("-o", name) if name == "--output" else (name,)
    return click.option(
        *names, help=help_text, type=kind, default=default, show_default=shown, **attributes
    )


def flag(name: str, help_text: str) -> Decorator:
    """Return a decorator that adds an option without a value."""
    return click.option(name, is_flag=True, help=help_text)


def data_option(help_text: str, shown: str | None = None) -> Decorator:
    """Add `--data`, a folder of images."""
    return option("--data", help_text, PATH, shown=shown)


def output_option(help_text: str, default: Path | str | None = None) -> Decorator:
    """Add `--output`, which is required without a default.

    Args:
        help_text: What is written there.
        default: The path, or a text that describes the path that the command chooses.
    """
    if isinstance(default, str):
        return option("--output", help_text, PATH, shown=default)
    return option("--output", help_text, PATH, default, required=default is None)


def checkpoint_option(help_text: str) -> Decorator:
    """Add `--checkpoint`."""
    return option("--checkpoint", help_text, PATH)


def variant_option(purpose: str, default: str | None = None, shown: str | None = None) -> Decorator:
    """Add `--variant`; `purpose` is the end of `Branch, or variant file, ...`."""
    help_text = f"Branch of the checkpoint, or variant file, {purpose}."
    return option("--variant", help_text, default=default, shown=shown)


def policy_option(instead_of: str) -> Decorator:
    """Add `--policy`, a policy file."""
    return option("--policy", f"Policy file of your own, instead of {instead_of}.", PATH)


def samples_option(
    help_text: str, default: int | None = None, shown: str | None = None
) -> Decorator:
    """Add `--samples`, the number of images that a command draws from a folder."""
    return option("--samples", help_text, COUNT, default, shown=shown)


def seed_option(what: str) -> Decorator:
    """Add `--seed`; `what` names what is drawn at random."""
    return option("--seed", f"Random seed of {what}.", click.IntRange(0), 0)


def batch_size_option(default: int | None = None, shown: str | None = None) -> Decorator:
    """Add `--batch-size`."""
    return option("--batch-size", "Number of images in each batch.", COUNT, default, shown=shown)


def workers_option(default: Callable[[], int], shown: str, minimum: int = 0) -> Decorator:
    """Add `--workers`."""
    help_text = f"Number of processes that prepare images{'' if minimum else '; 0 uses none'}."
    return option("--workers", help_text, click.IntRange(minimum), default, shown=shown)


def threads_option(shown: str) -> Decorator:
    """Add `--threads`."""
    return option("--threads", "Number of threads of each process.", COUNT, shown=shown)


def packed(name: str, kind: Callable[..., object], fields: Iterable[str]) -> Decorator:
    """Return a decorator that passes several parameters of a command as one object.

    Args:
        name: Name of the parameter that the command gets instead.
        kind: Class of the object, or function that returns it.
        fields: Names of the parameters, and of the arguments of `kind`.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            kwargs[name] = kind(**{field: kwargs.pop(field) for field in fields})
            return command(*args, **kwargs)

        return wrapper

    return decorate


def stacked(*decorators: Decorator) -> Decorator:
    """Return one decorator that does what several do, the first one outermost."""

    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _form(*, form: str, as_json: bool) -> str:
    return "json" if as_json else form


def _model_overrides(*, arch: str | None, trust: bool, **fields: Any) -> ModelOverrides:
    from recal.networks.spec import ModelOverrides

    from_file = _source("arch") is ParameterSource.DEFAULT_MAP
    if from_file and not trust and arch is not None and arch.startswith("python:"):
        raise click.UsageError(
            f"recal.toml: expected --trust to run the code that it names as architecture, {arch}. "
            "Read that code, then pass --trust, or pass --arch yourself."
        )
    return ModelOverrides(arch=arch, **fields)


def _reading(*, overrides: ModelOverrides, **fields: Any) -> ReadingOptions:
    from recal.checkpoint.layouts import ReadingOptions

    return ReadingOptions(model=overrides, **fields)


device_option = option(
    "--device", "Device that computes: auto, cpu, cuda, cuda:1, mps, ...", default="auto"
)
autocast_option = option(
    "--autocast",
    "Reduced precision of the forward pass, for operations that autocast lists as safe.",
    click.Choice(("bfloat16", "float16")),
)
# passed to the command as one text, `form`
format_option = stacked(
    click.option(
        "--format", "form", type=click.Choice(FORMATS), default="plain",
        help="Format in which the results are printed.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Shorthand for --format json."),
    packed("form", _form, ("form", "as_json")),
)  # fmt: skip
# passed to the command as one `ModelOverrides`, `overrides`; a field that is not given is None, and
# the value of the checkpoint or of the family is used
model_options = stacked(
    option(
        "--arch",
        "Architecture of the network: wrn16_1, timm:NAME, torchvision:NAME, "
        "robustbench:DATASET/THREAT/NAME or python:FILE.py:CALLABLE.",
    ),
    flag("--trust", "Run the code that recal.toml names as architecture."),
    option("--classes", "Number of classes.", COUNT),
    option("--family", "Family of policies and preprocessing: cifar, imagenet, sample or tiny."),
    option("--mean", "Mean of each channel of RGB images in [0, 1].", Numbers()),
    option("--std", "Standard deviation of each channel of RGB images in [0, 1].", Numbers()),
    option("--size", "Height and width of the network's input, in pixels.", COUNT),
    packed("overrides", _model_overrides, (*MODEL_FIELDS, "trust")),
)
# passed to the command as one `ReadingOptions`, `reading`
reading_options = stacked(
    option("--layout", "Naming scheme of the branches in the file: a known name or a .toml file."),
    option("--roles", "Position of each branch in the file, such as main=1,aux0=0."),
    flag("--ema", "Use the averaged (EMA) weights of the file."),
    model_options,
    packed("reading", _reading, READING_FIELDS),
)


def adapted(command: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the options of test-time adaptation to a command as one `adaptation`, which may be None.

    With `--adapt`, `--batch-size` is the batch size of the adaptation, and the command gets None.
    """

    @wraps(command)
    def wrapper(*args: Any, adapt: str | None, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in ADAPTATION_OPTIONS}
        given = {name: value for name, value in given.items() if value is not None}
        for name in given:
            if adapt != ADAPTATION_OPTIONS[name]:
                raise click.UsageError(
                    f"--{name}: expected --adapt {ADAPTATION_OPTIONS[name]} with it. Add it, or "
                    f"leave --{name} out."
                )
        adaptation = None
        if adapt is not None:
            from recal.evaluation.adaptation import Adaptation

            if kwargs["batch_size"] is not None:
                given["batch"] = kwargs["batch_size"]
            adaptation = Adaptation(kind=adapt, seed=kwargs["seed"], **given)
            kwargs["batch_size"] = None
        return command(*args, adaptation=adaptation, **kwargs)

    return wrapper


adaptation_options = stacked(
    option(
        "--adapt",
        "Test-time adaptation: normalise by statistics of the test images, either of each batch or "
        "as an exponential moving average over batches.",
        click.Choice(("batch", "ema")),
    ),
    option(
        "--prior",
        "Number of images that the network's own statistics count for in --adapt batch.",
        click.FloatRange(0),
        shown="0",
    ),
    option(
        "--momentum",
        "Weight of each new batch in --adapt ema.",
        click.FloatRange(0, 1, min_open=True),
        shown="0.1",
    ),
    adapted,
)


def _source(name: str) -> ParameterSource | None:
    return click.get_current_context().get_parameter_source(name)


def is_given(name: str) -> bool:
    """Tell whether a parameter, such as `batch_size`, was typed or stands in recal.toml."""
    return _source(name) not in (ParameterSource.DEFAULT, None)


def is_typed(name: str) -> bool:
    """Tell whether a parameter, such as `batch_size`, was typed on the command line."""
    return _source(name) is ParameterSource.COMMANDLINE


def refuse_typed(names: Iterable[str], reason: str) -> None:
    """Refuse options of the command line that would have no effect.

    Args:
        names: Names of parameters, such as `batch_size`.
        reason: Text that follows the option's name in the message.

    Raises:
        UsageError: One was typed. Values of recal.toml are ignored, as they hold for all commands.
    """
    from recal.errors import UsageError

    for name in filter(is_typed, names):
        parameters = click.get_current_context().command.params
        (option,) = (p.opts[0] for p in parameters if p.name == name)
        raise UsageError(f"{option}: {reason}")


def retyped() -> str:
    """Return the model options of the command line again, for the next command suggested."""
    import shlex

    parameters, words = click.get_current_context().params, [""]
    for field in filter(is_typed, MODEL_FIELDS):
        value = parameters[field]
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words.append(f"--{field} {shlex.quote(text)}")
    return " ".join(words)


def checkpoint_or_sample(
    checkpoint: Path | None, data: Path | None, family: str = "sample"
) -> tuple[Path, Path | None]:
    """Return the checkpoint and folder of images given, or the bundled ones, which a message names.

    Args:
        checkpoint: The checkpoint; None uses the bundled one.
        data: The folder of images; with the bundled Fashion-MNIST network, None uses the bundled
            images.
        family: The bundled network: `sample` (Fashion-MNIST) or `cifar`.
    """
    from recal.cli.console import messages
    from recal.files import sample_checkpoint, sample_images

    if checkpoint is not None:
        return checkpoint, data
    name = "Fashion-MNIST sample" if family == "sample" else "CIFAR-10 network"
    messages.print(f"No checkpoint given: using the bundled {name}.")
    bundled = sample_images() if family == "sample" else None
    return sample_checkpoint(family), data or bundled


def dtype_named(name: str | None) -> torch.dtype | None:
    """Return the torch type of that name, or None for None."""
    import torch

    return None if name is None else getattr(torch, name)


def choose_device(name: str) -> str:
    """Return `cuda`, `mps` or `cpu` for `auto`, else the name itself.

    Raises:
        UsageError: The device is unknown to torch, or this machine does not have it.
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
            f"--device: expected a device of this machine, got '{name}' ({reason(error)}). Use "
            "--device auto."
        ) from error
    return name


def spare_cores() -> int:
    """Return the number of cores less one, at most 8."""
    from recal.machine import cores_of_this_process

    return min(8, cores_of_this_process() - 1)


def all_cores() -> int:
    """Return the number of cores."""
    from recal.machine import available_cores

    return available_cores()
