"""`recal data`: find, download, check, regenerate and show data sets."""

from dataclasses import asdict
from pathlib import Path

import click

from recal.cli.options import (
    COUNT,
    PATH,
    examples,
    format_option,
    option,
    output_option,
    seed_option,
)
from recal.cli.values import NAMES
from recal.files import data_folders
from recal.machine import available_cores


@click.group("data", epilog=examples("recal data list", "recal data fetch cifar10c"))
def data_command() -> None:
    """List, download, verify and regenerate data sets; show a corruption.

    Only `recal data fetch` downloads anything.
    """


@data_command.command("list", epilog=examples("recal data list", "recal data list --json"))
@format_option
def list_command(form: str) -> None:
    """List the data sets that recal knows, and where they are."""
    from recal.cli.console import print_results
    from recal.report.listings import data_sets, data_sets_blocks

    found = data_sets()
    rows = [{**asdict(status), "ways": " ".join(status.ways)} for status in found]
    print_results(form, found, rows, data_sets_blocks(found))


@data_command.command("fetch", epilog=examples("recal data fetch cifar10c -o DATASETS"))
@click.argument("name")
@output_option("Folder of data sets in which to put it.", "$RECAL_DATA, else ./data")
def fetch_command(name: str, output: Path | None) -> None:
    """Download the published data set NAME, check it and unpack it.

    Run the same command again to continue an interrupted download.
    """
    from recal.cli.console import byte_bar
    from recal.datasets.fetch import fetch

    with byte_bar() as progress:
        folder = fetch(name, output or data_folders()[0], progress)
    click.echo(f"{name}: {folder}")


@data_command.command("verify", epilog=examples("recal data verify cifar10c"))
@click.argument("target")
def verify_command(target: str) -> None:
    """Check TARGET, a data set's name or folder or a downloaded archive, against its checksums."""
    from recal.cli.console import byte_bar
    from recal.datasets.verify import verify_target

    with byte_bar() as progress:
        found = verify_target(target, progress)
    click.echo(found)


@data_command.command(
    "generate",
    epilog=examples("recal data generate cifar10c --from cifar-10-batches-py -o CIFAR-10-C"),
)
@click.argument("name")
@click.option("--from", "source", required=True, type=PATH, help="Folder of the clean test images.")
@output_option("Folder of the new data set.")
@option(
    "--corruptions",
    "Corruptions to make: standard (15), all (19), or names separated by commas.",
    NAMES,
    "standard",
)
@seed_option("the corruptions")
@option(
    "--workers",
    "Number of processes that prepare images.",
    COUNT,
    available_cores,
    shown="all cores",
)
def generate_command(
    name: str, source: Path, output: Path, corruptions: tuple[str, ...], seed: int, workers: int
) -> None:
    """Write cifar10c, cifar100c, tinyimagenetc or imagenetc, made from the clean test images.

    The folder has the layout of the published set. The random draws of the published images are
    unknown, so results on regenerated images are labelled. Run the same command again to continue
    an interrupted run.
    """
    from recal.cli.console import progress_bar
    from recal.corruptions.parameters import ALL_CORRUPTIONS, CORRUPTIONS
    from recal.datasets.generate import generate

    groups: dict[tuple[str, ...], tuple[str, ...]]
    groups = {("standard",): CORRUPTIONS, ("all",): ALL_CORRUPTIONS}
    with progress_bar("images") as progress:
        record = generate(
            name,
            source,
            output,
            progress,
            corruptions=groups.get(corruptions, corruptions),
            seed=seed,
            workers=workers,
        )
    cells = len(record.corruptions) * len(record.severities)
    click.echo(f"{output}: {cells} cells of {record.images} images, {record.label}")


@data_command.command(
    "show", epilog=examples("recal data show fog --image photo.jpg", "recal data show all")
)
@click.argument("corruption")
@option("--image", "Image to draw the corruption on.", PATH, shown="a test pattern")
@option(
    "--family",
    "Family of the corruption's parameters: cifar, tiny or imagenet.",
    shown="the family that fits the image's size",
)
@seed_option("the corruption")
@option(
    "--width", "Width of each image in the picture, in pixels.", click.IntRange(8), shown="its own"
)
@output_option("Picture to write, .png or .jpg.", Path("corruption.png"))
def show_command(
    corruption: str,
    image: Path | None,
    family: str | None,
    seed: int,
    width: int | None,
    output: Path,
) -> None:
    """Draw CORRUPTION at every severity, after the clean image; `all` draws all 19."""
    from recal.corruptions.show import show_corruption

    size = show_corruption(corruption, image, output, family=family, seed=seed, width=width)
    click.echo(f"{output}: {size[0]}x{size[1]} pixels")
