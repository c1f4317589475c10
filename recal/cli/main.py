"""The command group `recal`: imports commands when used, maps errors to exit statuses."""

import importlib
import io
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import click

from recal.errors import RecalError, RecalWarning, printable
from recal.version import __version__

PROJECT_FILE = Path("recal.toml")

# module of `recal.cli` and help line of each command, the function `<name>_command` of that module;
# listed here, so that `recal --help` imports no command
COMMANDS = {
    "demo": ("demo", "Run all steps on the bundled sample, offline."),
    "inspect": (
        "variants",
        "Show the BatchNorm branches of a checkpoint, and whether to trust them.",
    ),
    "policies": ("policies", "List the augmentation policies; draw what one does."),
    "calibrate": ("calibrate", "Estimate BatchNorm statistics on your images; write a variant."),
    "merge": ("variants", "Make a variant from the parts of a calibration."),
    "mix": ("variants", "Interpolate variants, or blend statistics with a prior."),
    "suites": ("runs", "List the benchmark suites, and which are available locally."),
    "eval": ("eval", "Evaluate variants on a clean or corrupted benchmark."),
    "report": ("runs", "Write the HTML report of a run."),
    "compare": ("runs", "Test whether targets of a run differ beyond noise."),
    "select": ("runs", "Choose the best target of a run; report it on held-out images."),
    "convert": ("variants", "Write a variant as an ordinary checkpoint."),
    "export": ("export", "Write a variant as an ONNX file, after proving that it matches."),
    "verify": ("onnx_files", "Check an ONNX file against its record."),
    "patch": ("onnx_files", "Replace the variant inside a patchable ONNX file, without torch."),
    "predict": ("onnx_files", "Classify images with an ONNX file."),
    "bench": ("onnx_files", "Measure the speed of ONNX files side by side."),
    "data": ("data", "List, download, verify and regenerate data sets; show corruptions."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of a project's work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return the command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"recal.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, prog_name="recal")
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    help="Show the traceback of an error; may stand before or after the command.",
)
@click.pass_context
def recal(ctx: click.Context) -> None:
    """Pick, mix and recalibrate the BatchNorm branches of a trained network.

    Then evaluate every variant, choose one, and export it to ONNX. Start with `recal demo`. In a
    folder with a recal.toml, its tables set the defaults of the options.
    """
    if PROJECT_FILE.is_file() and ctx.invoked_subcommand in COMMANDS:
        from recal.cli.project import project_defaults

        name = ctx.invoked_subcommand
        ctx.default_map = {name: project_defaults(PROJECT_FILE, name, recal)}


_show_as_python_does = warnings.showwarning


def _show_warning(message: Warning | str, *about: Any) -> None:
    """Show a warning of recal's in one line, and others as Python does."""
    if isinstance(message, RecalWarning):
        click.echo(f"warning: {printable(str(message))}", err=True)
    else:
        _show_as_python_does(message, *about)


def main() -> None:
    """Run the command line and exit with the status of the outcome."""
    arguments, debug = split_debug(sys.argv[1:])
    warnings.showwarning = _show_warning  # type: ignore[assignment]  # it passes all arguments on
    try:
        sys.exit(recal.main(arguments, standalone_mode=False))
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)  # the usage, and a message that quotes the arguments
        for line in shown.getvalue().splitlines():
            click.echo(printable(line), err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nrecal: interrupted", err=True)
        sys.exit(130)
    except RecalError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"recal: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)


def split_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Return the arguments without `--debug`, and whether it was among those before a `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return kept + arguments[end:], len(kept) < end
