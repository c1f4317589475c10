"""`recal data`: where data sets are, fetching, checking, regenerating and showing them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


STANDARD, EVERY = "standard", "all"


@click.group("data")
def command() -> None:
    """List, fetch, verify and regenerate data sets; show a corruption.

    Nothing is ever downloaded but by `recal data fetch`.
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_command(as_json: bool) -> None:
    """Say which data sets recal knows and where they are."""
    import json

    from recal.datasets.catalogue import catalogue, find_set
    from recal.datasets.generate import GENERATED
    from recal.datasets.provenance import label_of

    known = []
    for name, published in catalogue().items():
        folder = find_set(name)
        possible = {"fetch": bool(published.downloads), "generate": name in GENERATED}
        known.append({
            "name": name,
            "title": published.title,
            "gigabytes": published.gigabytes,
            "folder": str(folder) if folder else None,
            "label": label_of(folder) if folder else None,
            "ways": [way for way, there in possible.items() if there],
            "page": published.page or None,
        })  # fmt: skip
    if as_json:
        click.echo(json.dumps(known, indent=1))
    else:
        _show_sets(known)


def _show_sets(known: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from recal.cli.console import console

    table = Table("name", "data set", "GB", "where", box=None)
    for row in known:
        place = row["folder"] or f"not here: {' or '.join(row['ways']) or row['page']}"
        label = f" ({row['label']})" if row["label"] else ""
        table.add_row(row["name"], row["title"], f"{row['gigabytes']:g}", f"{place}{label}")
    console.print(table)


@command.command("fetch")
@click.argument("name")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="Folder of data sets that it goes into.  [$RECAL_DATA, else ./data]",
)  # fmt: skip
def fetch_command(name: str, output: Path | None) -> None:
    """Download the published data set NAME, check it, unpack it.

    An interrupted download goes on where it was when the same command is given again.
    """
    from recal.datasets.fetch import fetch
    from recal.resources import data_folders

    with _byte_bar() as progress:
        folder = fetch(name, output or data_folders()[0], progress)
    click.echo(f"{name}: {folder}")


@command.command("verify")
@click.argument("target")
def verify_command(target: str) -> None:
    """Check a data set, by name or folder, or a downloaded archive, against its checksums."""
    from recal.datasets.catalogue import SUMS, catalogue, find_set
    from recal.datasets.fetch import verify, verify_archive
    from recal.datasets.generate import GENERATED, verify_folders
    from recal.datasets.provenance import read_provenance
    from recal.errors import InputError
    from recal.wording import did_you_mean

    path = Path(target)
    if target in catalogue() and not path.exists():
        found = find_set(target)
        if found is None:
            raise InputError(f"{target}: expected it in a data folder, got none. See `recal data "
                             "list`.")  # fmt: skip
        path = found
    if path.is_file():
        click.echo(f"{path}: is the published file of {verify_archive(path)}")
        return
    if not path.is_dir():
        known = {*catalogue(), *GENERATED}
        raise InputError(
            f"{target}: expected a folder, an archive or the name of a data set, got none of them."
            f"{did_you_mean(target, known)}"
        )
    record = read_provenance(path)
    if record is not None and not (path / SUMS).is_file():
        count = verify_folders(path, record)
    else:
        with _byte_bar() as progress:
            count = verify(path, progress)
    label = f" ({record.label})" if record else ""
    click.echo(f"{path}: {count} files as recorded{label}")


@command.command("generate")
@click.argument("name")
@click.option(
    "--from", "source", required=True, type=click.Path(path_type=Path),
    help="Folder of the clean test images.",
)  # fmt: skip
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the new set."
)
@click.option(
    "--corruptions", default=STANDARD, show_default=True,
    help="standard (15), all (19), or names with commas between them.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--workers", type=click.IntRange(1), help="Processes.  [all cores]")
def generate_command(
    name: str, source: Path, output: Path, corruptions: str, seed: int, workers: int | None
) -> None:
    """Write cifar10c, cifar100c, tinyimagenetc or imagenetc from the clean test images.

    The layout is that of the published set. The originals' random draws are not known, so that
    results made with regenerated images are labelled. An interrupted run goes on where it was.
    """
    from recal.cli.console import progress_bar
    from recal.corruptions.parameters import ALL_CORRUPTIONS, CORRUPTIONS
    from recal.datasets.generate import generate
    from recal.machine import available_cores

    groups = {STANDARD: CORRUPTIONS, EVERY: ALL_CORRUPTIONS}
    names = groups.get(corruptions) or tuple(part.strip() for part in corruptions.split(","))
    with progress_bar("images") as progress:
        record = generate(
            name, source, output, progress, corruptions=names, seed=seed,
            workers=workers or available_cores(),
        )  # fmt: skip
    cells = len(record.corruptions) * len(record.severities)
    click.echo(f"{output}: {cells} cells of {record.images} images, {record.label}")


@command.command("show")
@click.argument("corruption")
@click.option("--image", type=click.Path(path_type=Path), help="Your own image.  [a test pattern]")
@click.option("--family", help="cifar, tiny or imagenet.  [by the image's size]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--width", type=click.IntRange(8), help="Of each image in the picture.  [its own]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("corruption.png"),
    show_default=True, help="The picture to write.",
)  # fmt: skip
def show_command(
    corruption: str,
    image: Path | None,
    family: str | None,
    seed: int,
    width: int | None,
    output: Path,
) -> None:
    """Draw the severities of CORRUPTION on an image, the clean one first; `all` draws all 19."""
    from recal.corruptions.show import show_corruption

    size = show_corruption(corruption, image, output, family=family, seed=seed, width=width)
    click.echo(f"{output}: {size[0]}x{size[1]} pixels")


@contextmanager
def _byte_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar in bytes with the time left, on standard error."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from recal.cli.console import messages

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=messages, transient=True) as bar:
        task = bar.add_task("", total=None)

        def update(what: str, done: int, total: int) -> None:
            if bar.tasks[0].description != what:
                bar.reset(task, description=what)
            bar.update(task, completed=done, total=total or None)

        yield update
