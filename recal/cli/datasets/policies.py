"""`recal policies`."""

from __future__ import annotations

from pathlib import Path

import click

DRAWS = 8


@click.group("policies", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List the augmentation policies of every family; draw what one does."""
    if ctx.invoked_subcommand is None:
        from rich.table import Table

        from recal.cli.console import console
        from recal.policies.families import family_names
        from recal.policies.policy import load_policy, policy_names

        table = Table("family", "policy", "what it does", box=None, pad_edge=False)
        for family in family_names():
            for number, name in enumerate(policy_names(family)):
                shown = "" if number else family
                table.add_row(shown, name, load_policy(family, name).summary)
        console.print(table)


@command.command("show")
@click.argument("name")
@click.option("--family", help="Family of NAME.  [the one of the images' size]")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of images.  [bundled]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("policy.png"),
    show_default=True, help="The picture to write.",
)  # fmt: skip
@click.option("--images", default=6, show_default=True, type=click.IntRange(1, 64))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
def show(
    name: str, family: str | None, data: Path | None, output: Path, images: int, seed: int
) -> None:
    """Draw what policy NAME, or a policy file, does.

    A row an image: as its family's clean policy prepares it, then as `recal calibrate` sees it
    under --seed and the seeds after it.
    """
    from recal.data.contact_sheet import write_sheet
    from recal.data.folders import TRAIN, open_images
    from recal.data.sampling import keyed_draws, seeded_batches
    from recal.policies.families import nearest_family
    from recal.policies.policy import load_policy, resolve_policy
    from recal.policies.prepared import PreparedImages
    from recal.resources import sample_images

    source = open_images(data or sample_images(), TRAIN)
    chosen = [int(index) for index in seeded_batches(len(source), images, images, seed)[0]]
    if family is None:
        family = "sample" if data is None else nearest_family(min(source[chosen[0]].shape[:2]))
    policy = resolve_policy(name, family)
    first = source[chosen[0]]
    with keyed_draws(seed, chosen[0]):
        size = max(policy.transform()(first).shape[:2])
    drawn = [PreparedImages(source, policy, seed + draw, size) for draw in range(DRAWS)]
    clean = load_policy(family, "clean").transform()
    rows = [
        (
            source.name(index).removeprefix(f"{source.where}/"),
            [clean(source[index]), *(images.read(index) for images in drawn)],
        )
        for index in chosen
    ]
    width, height = write_sheet(
        output,
        f"{policy.name} ({family}): {policy.summary}",
        ["clean", *(f"seed {images.seed}" for images in drawn)],
        rows,
    )
    click.echo(f"{output}: {width}x{height} pixels, {policy.summary}")
