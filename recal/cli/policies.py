"""`recal policies`."""

from pathlib import Path

import click

from recal.cli.console import print_results
from recal.cli.options import (
    data_option,
    examples,
    format_option,
    option,
    output_option,
    seed_option,
)
from recal.report.blocks import Grid


@click.group(
    "policies",
    invoke_without_command=True,
    epilog=examples("recal policies", "recal policies show strong --data IMAGES -o strong.png"),
)
@format_option
@click.pass_context
def policies_command(ctx: click.Context, form: str) -> None:
    """List the augmentation policies of every family; draw what one does."""
    if ctx.invoked_subcommand is not None:
        return
    from recal.policies.families import family_names
    from recal.policies.policy import load_policy, policy_names

    rows = [
        {"family": family, "policy": name, "summary": load_policy(family, name).summary}
        for family in family_names()
        for name in policy_names(family)
    ]
    grid = Grid(
        "",
        ("family", "policy", "what it does"),
        tuple(tuple(row.values()) for row in rows),
        left=(0, 1, 2),
    )
    print_results(form, rows, rows, [grid])


@policies_command.command(
    "show", epilog=examples("recal policies show weak", "recal policies show my.toml")
)
@click.argument("name")
@option(
    "--family",
    "Family of the policy NAME: cifar, imagenet, sample or tiny.",
    shown="the family that fits the size of the images",
)
@data_option("Folder of images to draw the policy on.", "the bundled images")
@output_option("Picture to write, .png or .jpg.", Path("policy.png"))
@option("--samples", "Number of images to draw the policy on.", click.IntRange(1, 64), 6)
@seed_option("the choice of images and of the first random draw of the policy")
def show(
    name: str, family: str | None, data: Path | None, output: Path, samples: int, seed: int
) -> None:
    """Draw what the policy NAME, or a policy file, does to images.

    Each row shows one image: as its family's clean policy prepares it, then as `recal calibrate`
    uses it with --seed and with the seeds after it.
    """
    from recal.policies.show import show_policy

    drawn = show_policy(name, output, data=data, family=family, samples=samples, seed=seed)
    click.echo(f"{output}: {drawn.width}x{drawn.height} pixels, {drawn.policy.summary}")
