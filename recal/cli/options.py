"""Options that several commands share: each has one spelling, one type and one help text."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Container, Iterable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click
from click.core import ParameterSource

from recal.cli.values import AS_ASSUMED, Channels
from recal.distributed import Part
from recal.errors import UsageError, reason
from recal.files import sample_checkpoint, sample_images

if TYPE_CHECKING:
    from recal.checkpoint.layouts import ReadingOptions
    from recal.networks.spec import ModelOverrides

Decorator: TypeAlias = Callable[[Any], Any]

MODEL_FIELDS = (
    "arch", "classes", "family", "mean", "std", "size", "crop_share", "interpolation", "crop_mode",
    "channels", "channel_order",
)  # fmt: skip
PATH = click.Path(path_type=Path)
COUNT = click.IntRange(1)


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
    """Add `--data`, a folder of images, or an address of them."""
    return option("--data", help_text, DataPath(), shown=shown)


def output_option(help_text: str, default: Path | str | None = None) -> Decorator:
    """Add `--output`, which is required without a default.

    Args:
        help_text: What is written there.
        default: The path, or a text that describes the path that the command chooses.
    """
    if isinstance(default, str):
        return option("--output", help_text, PATH, shown=default)
    return option("--output", help_text, PATH, default, required=default is None)


def seed_option(what: str) -> Decorator:
    """Add `--seed`; `what` names what is drawn at random."""
    return option("--seed", f"Random seed of {what}.", click.IntRange(0), 0)


class DataPath(click.ParamType[Path]):
    """A path of images, or an address of files that are copied to the user's cache."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path; for an address, that of the copy."""
        if isinstance(value, Path) or "://" not in value:
            return Path(value)
        from recal.cli.console import byte_bar
        from recal.data.remote import local_data

        with byte_bar() as bar:
            copied = local_data(value, bar)
        if ctx is not None:
            ctx.meta[ADDRESS] = value
        return copied


# the address that was given for the images, as another command would need it
ADDRESS = "recal.address"


class PartType(click.ParamType[Part]):
    """A part and the number of parts, such as `3/16`."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Part:
        """Read the text."""
        return value if isinstance(value, Part) else Part.parse(str(value))


def part_option(what: str, one: str) -> Decorator:
    """Add `--part`; `what` is shared by the parts, and `one` is what a killed job loses."""
    return option(
        "--part",
        f"Part of {what} to compute, such as 3/16: for jobs of their own, at once or later, on any "
        f"machines that share the folder. One that dies loses one {one}.",
        PartType(),
        shown="all",
    )


def packed(name: str, kind: Callable[..., object], *options: Decorator) -> Decorator:
    """Return a decorator that adds options, and passes their values as one object.

    Args:
        name: Name of the parameter that the command gets.
        kind: Class of the object, or function that returns it; its arguments are the options.
        *options: Decorators that add one option each.
    """

    def decorate(command: Any) -> Any:
        @wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            kwargs[name] = kind(**{field: kwargs.pop(field) for field in fields})
            return command(*args, **kwargs)

        below = len(getattr(command, "__click_params__", ()))
        for add in reversed(options):
            add(wrapper)
        fields = [option.name for option in wrapper.__click_params__[below:]]  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _model_overrides(*, arch: str | None, trust: bool, **fields: Any) -> ModelOverrides:
    from recal.networks.spec import ModelOverrides

    from_file = _source("arch") is ParameterSource.DEFAULT_MAP
    if from_file and not trust and arch is not None and arch.startswith("python:"):
        raise click.UsageError(
            f"recal.toml: expected --trust to run the code that it names as architecture, {arch}. "
            "Read that code, then pass --trust, or pass --arch yourself."
        )
    return ModelOverrides(arch=arch, **fields)


def _reading(
    *, layout: str | None, roles: str | None, ema: bool, prefix: str | None, **model: Any
) -> ReadingOptions:
    from recal.checkpoint.layouts import ReadingOptions

    overrides = _model_overrides(**model)
    return ReadingOptions(layout=layout, roles=roles, ema=ema, prefix=prefix, model=overrides)


def _names_of(*options: Decorator) -> tuple[str, ...]:
    """Return the names of the parameters that some options are passed as."""

    def nothing() -> None: ...

    for add in options:
        add(nothing)
    return tuple(parameter.name for parameter in nothing.__click_params__)  # type: ignore[attr-defined]


def prepared_by(
    model: ModelOverrides, policy: Path | None, *, may_draw: bool = False
) -> ModelOverrides:
    """Return a description with the policy file of --policy: see `ModelOverrides.prepared_by`."""
    from recal.policies.policy import read_policy

    return model if policy is None else model.prepared_by(read_policy(policy), may_draw=may_draw)


policy_option = option(
    "--policy",
    "Policy file, without random ops, that prepares the images.",
    PATH,
    shown="the network's own preparation",
)
device_option = option(
    "--device", "Device that computes: auto, cpu, cuda, cuda:1, mps, ...", default="auto"
)
autocast_option = option(
    "--autocast",
    "Reduced precision of the forward pass, for operations that autocast lists as safe.",
    click.Choice(("bfloat16", "float16")),
)
format_option = packed(
    "form",
    lambda **given: "json" if given["json"] else given["format"],
    option(
        "--format",
        "Format in which the results are printed.",
        click.Choice(("plain", "markdown", "csv", "json")),
        "plain",
    ),
    flag("--json", "Shorthand for --format json."),
)
# a field that is not given is None: the value of the checkpoint or of the family is used
_MODEL = (
    option(
        "--arch",
        "Architecture of the network: wrn16_1, timm:NAME, torchvision:NAME, "
        "robustbench:DATASET/THREAT/NAME or python:FILE.py:CALLABLE.",
    ),
    flag("--trust", "Run the code that recal.toml names as architecture."),
    option("--classes", "Number of classes.", COUNT),
    option("--family", "Family of policies and preprocessing: cifar, imagenet, sample or tiny."),
    option(
        "--mean",
        "Mean of each channel of images in [0, 1]; as-assumed keeps what recal assumes, even "
        "if images show that it does not fit.",
        Channels(AS_ASSUMED),
    ),
    option("--std", "Standard deviation of each channel of images in [0, 1].", Channels()),
    option("--size", "Height and width of the network's input, in pixels.", COUNT),
    option(
        "--crop-share",
        "Share of the resized side that the crop of test images keeps, such as 0.875.",
        click.FloatRange(0.05, 1),
    ),
    option(
        "--interpolation",
        "Filter of resizing.",
        click.Choice(("bicubic", "bilinear", "nearest", "box", "hamming", "lanczos")),
    ),
    option(
        "--crop-mode",
        "How test images get the network's size: center resizes the short side and crops, squash "
        "resizes both sides, border resizes the long side and pads, none accepts no other size.",
        click.Choice(("center", "squash", "border", "none")),
    ),
    option("--channels", "Number of channels of the network's input, such as 1 for grey.", COUNT),
    option(
        "--channel-order",
        "Order of the channels in the network's input.",
        click.Choice(("rgb", "bgr")),
        shown="rgb",
    ),
)
model_options = packed("overrides", _model_overrides, *_MODEL)
_READING = (
    option("--layout", "Naming scheme of the branches in the file: a known name or a .toml file."),
    option("--roles", "Position of each branch in the file, such as main=1,aux0=0."),
    flag("--ema", "Use the averaged (EMA) weights of the file."),
    option(
        "--prefix",
        "First part of the names of the network's tensors in the file, such as encoder_q.",
        shown="found by comparison with the network",
    ),
    option(
        "--bn-act/--no-bn-act",
        "Whether BatchNorm layers apply the activations that timm's BatchNormAct2d carries; "
        "--no-bn-act builds a network that was trained without them.",
        shown="applied",
    ),
    *_MODEL,
)
reading_options = packed("reading", _reading, *_READING)
# what says how a checkpoint is read and fed, in every command that reads one
HOW_IT_IS_READ = _names_of(*_READING)


def _source(name: str) -> ParameterSource | None:
    return click.get_current_context().get_parameter_source(name)


def is_given(name: str) -> bool:
    """Tell whether a parameter, such as `batch_size`, was typed or stands in recal.toml."""
    return _source(name) not in (ParameterSource.DEFAULT, None)


def is_typed(name: str) -> bool:
    """Tell whether a parameter, such as `batch_size`, was typed on the command line."""
    return _source(name) is ParameterSource.COMMANDLINE


def refuse_typed(names: Iterable[str], reason: str) -> None:
    """Raise UsageError if an option was typed that would have no effect.

    Values of recal.toml are ignored, as they hold for all commands.

    Args:
        names: Names of parameters, such as `batch_size`.
        reason: Text that follows the option's name in the message.
    """
    for name in filter(is_typed, names):
        parameters = click.get_current_context().command.params
        (option,) = (p.opts[0] for p in parameters if p.name == name)
        raise UsageError(f"{option}: {reason}")


def typed_words(names: Container[str]) -> list[str]:
    """Return what was typed for some parameters, such as `batch_size`, as words of a command."""
    context, options, arguments = click.get_current_context(), list[str](), list[str]()
    for parameter in context.command.params:
        name = str(parameter.name)
        if name not in names or not is_typed(name):
            continue
        value = context.params[name]
        if name == "data":
            value = context.meta.get(ADDRESS, value)
        if isinstance(parameter, click.Argument):
            arguments += map(str, value) if isinstance(value, tuple) else [str(value)]
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            options.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            options += [max(parameter.opts, key=len), text]
    return [*options, *(["--", *arguments] if arguments else [])]


def next_command(command: str, *words: str | Path, how_it_is_read: bool = True) -> str:
    """Return the sentence that names the command to type next, ready for a shell.

    Everything that was typed about how the checkpoint is read and fed is said again: otherwise
    another network or branch would be used.

    Args:
        command: Name of the command, such as `eval`.
        *words: Its arguments and options. A last part `*.safetensors` stands for all such files.
        how_it_is_read: Whether it reads the checkpoint again.
    """
    said = ["recal", command]
    for word in map(str, words):
        folder, star, suffix = word.rpartition("*")
        said.append(f"{shlex.quote(folder)}{star}{suffix}" if star else shlex.quote(word))
    if how_it_is_read:
        said += map(shlex.quote, typed_words(HOW_IT_IS_READ))
    return f"Next: {' '.join(said)}"


def checkpoint_or_sample(
    checkpoint: Path | None, data: Path | None, family: str = "sample"
) -> tuple[Path, Path | None]:
    """Return the checkpoint and folder of images given, or the bundled ones, which a message names.

    Args:
        checkpoint: The checkpoint; None uses the bundled one.
        data: The folder; None uses the bundled images of the bundled Fashion-MNIST network.
        family: The bundled network: `sample` (Fashion-MNIST) or `cifar`.
    """
    from recal.cli.console import messages

    if checkpoint is not None:
        return checkpoint, data
    name = "Fashion-MNIST sample" if family == "sample" else "CIFAR-10 network"
    messages.print(f"No checkpoint given: using the bundled {name}.")
    bundled = sample_images() if family == "sample" else None
    return sample_checkpoint(family), data or bundled


def choose_device(name: str) -> str:
    """Return `cuda`, `mps` or `cpu` for `auto`, else the name of a device that this machine has."""
    import torch

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
