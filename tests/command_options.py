"""The options that a command takes, for comparison with what the documents say."""

import click

from recal.cli.main import recal


def options_of(command):
    """Return the long and short names of a command's options, those that switch off included."""
    found = recal.get_command(click.Context(recal), command)
    assert found is not None, f"recal has no command {command}"
    return {name for given in found.params for name in (*given.opts, *given.secondary_opts)}
