"""The group `recal`: finds its commands in a literal table and turns errors into exit statuses."""

from __future__ import annotations

import importlib
import io
import sys
import traceback
from pathlib import Path

import click

from recal.errors import RecalError, printable
from recal.version import __version__

PROJECT_FILE = Path("recal.toml")

# name: module and one line of help; listed here, so that `recal --help` imports none of them
COMMANDS = {
    "demo": ("recal.cli.demo", "Run the whole flow on the bundled sample, offline."),
    "inspect": ("recal.cli.variants.inspect", "Say which BatchNorm branches a checkpoint holds."),
    "policies": (
        "recal.cli.datasets.policies",
        "List the augmentation policies; draw what one does.",
    ),
    "calibrate": (
        "recal.cli.variants.calibrate",
        "Re-estimate BatchNorm statistics; write a variant.",
    ),
    "mix": (
        "recal.cli.variants.mix",
        "Mix variants: the path between branches, or towards a prior.",
    ),
    "suites": (
        "recal.cli.runs.suites",
        "List the benchmarks, and what of them is on this machine.",
    ),
    "eval": ("recal.cli.runs.eval", "Evaluate variants on a clean or corrupted benchmark."),
    "compare": ("recal.cli.runs.compare", "Say whether targets of a run differ beyond noise."),
    "select": ("recal.cli.runs.select", "Choose a target of a run; report it on other images."),
    "convert": ("recal.cli.variants.convert", "Write a variant as an ordinary checkpoint."),
    "export": (
        "recal.cli.onnx_file.export",
        "Write a variant as an ONNX file that is proven to match.",
    ),
    "verify": ("recal.cli.onnx_file.verify", "Check that an ONNX file is what its record says."),
    "patch": (
        "recal.cli.onnx_file.patch",
        "Put another variant into a patchable ONNX file, without torch.",
    ),
    "predict": ("recal.cli.onnx_file.predict", "Classify images by an ONNX file."),
    "bench": ("recal.cli.onnx_file.bench", "Time ONNX files against each other."),
    "data": (
        "recal.cli.datasets.data",
        "List, fetch, verify and regenerate data sets; show corruptions.",
    ),
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return its `command`."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="recal")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def recal(ctx: click.Context, debug: bool) -> None:
    """Pick, mix and recalibrate the BatchNorm branches of a trained network.

    Then evaluate every variant, choose one, and export it to ONNX. Start with `recal demo`. In a
    folder with a recal.toml, its tables are the defaults of every option.
    """
    ctx.ensure_object(dict)["debug"] = debug
    if PROJECT_FILE.is_file() and ctx.invoked_subcommand in COMMANDS:
        from recal.cli.project import project_defaults

        command = recal.get_command(ctx, ctx.invoked_subcommand)
        assert command is not None
        ctx.default_map = {ctx.invoked_subcommand: project_defaults(PROJECT_FILE, command)}


def main() -> None:
    """Run the command line and exit with the status that fits the outcome."""
    debug = "--debug" in sys.argv[1:2]
    try:
        sys.exit(recal.main(standalone_mode=False))
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
