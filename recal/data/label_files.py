"""Files of labels and of classes' names, in the formats in which they are published."""

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from recal.errors import InputError, listed, shown
from recal.files import read_text, require_file
from recal.schema import read_json_file

# the right answers of an image: names or numbers of classes
Answers: TypeAlias = tuple[int | str, ...]

META = "meta.mat"
LARGEST_META = 8_000_000  # bytes; the development kit's has one
VALIDATION_IMAGE = "ILSVRC2012_val_{:08d}.JPEG"
FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "image", "imageid", "image_id")
# names of classes are safer than numbers, whose order is somebody's own
LABEL_COLUMNS = ("wnid", "synset", "predictionstring", "label", "class", "target", "category")
SYNSET = re.compile(r"n\d{8}")


def read_labels(path: Path, synsets: Path | None = None) -> Mapping[str, Answers]:
    """Read a file of labels: the right answers by image, as its file names it.

    It may be a .csv or .tsv file with columns of files and of labels; another text file whose lines
    are a file and a label; ImageNet's ground truth, whose lines are ids, which `meta.mat` of the
    development kit names; or a .json file: a table of files and labels, or the list of ReaL, which
    has the labels of each of ImageNet's validation images in order. Labels are numbers from 0 on,
    or names such as `n01440764`.

    Raises:
        InputError: It is malformed, or its ids cannot be named.
    """
    require_file(path, "a file of labels")
    if path.suffix.lower() == ".json":
        return _answers_in_json(path)
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise InputError(f"{path}: expected labels, got none.")
    if path.suffix.lower() in (".csv", ".tsv"):
        rows = _columns(path, lines)
    elif all(line.isdecimal() for line in lines):
        names = _ilsvrc_synsets(synsets or path.with_name(META), path)
        unknown = sorted({line for line in lines if int(line) not in names})
        if unknown:
            raise InputError(f"{path}: expected ids of {META}, got {listed(unknown)}.")
        rows = [(VALIDATION_IMAGE.format(i), names[int(n)]) for i, n in enumerate(lines, 1)]
    else:
        rows = [(row[0], row[1]) for line in lines if len(row := line.rsplit(None, 1)) == 2]
        if len(rows) < len(lines):
            raise InputError(f"{path}: expected lines of a file and a label, got other lines.")
    return _unique(path, ((name, (_number(label),)) for name, label in rows))


def read_classes(path: Path) -> tuple[str, ...]:
    """Read the names of classes in the order of a network's: one a line, or in JSON.

    A line may begin with its number. If every line begins with a synset of ImageNet, what follows
    is left out. In JSON they are a list, or a table of names and numbers, either way round.

    Raises:
        InputError: It is malformed, or names a class twice.
    """
    require_file(path, "a list of classes")
    if path.suffix.lower() == ".json":
        names = _classes_in_json(path)
    elif path.suffix.lower() in (".pkl", ".pickle"):
        raise InputError(f"{path}: expected a text or .json file, got a pickle. Convert it.")
    else:
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        pairs = [re.fullmatch(r"(\d+)[\s:,]+(\S.*)", line) for line in names]
        if names and all(pairs):
            numbers = [int(pair[1]) for pair in pairs if pair]
            if numbers in (list(range(len(names))), list(range(1, len(names) + 1))):
                names = [pair[2] for pair in pairs if pair]
    firsts = [name.split()[0].strip(",") for name in names]
    names = firsts if all(map(SYNSET.fullmatch, firsts)) else names
    twice = sorted({name for name in names if names.count(name) > 1}) if names else []
    if twice or not names:
        raise InputError(
            f"{path}: expected each class once, got {listed(twice) or 'none'}"
            f"{' twice' if twice else ''}."
        )
    return tuple(names)


def _number(label: str) -> int | str:
    return int(label) if re.fullmatch(r"-?\d+", label) else label


def _unique(path: Path, rows: Iterable[tuple[str, Answers]]) -> dict[str, Answers]:
    table: dict[str, Answers] = {}
    for name, answers in rows:
        if table.setdefault(name, answers) != answers:
            raise InputError(f"{path}: expected one label for {shown(name)}, got two.")
    return table


def _columns(path: Path, lines: list[str]) -> list[tuple[str, str]]:
    """Return the columns of files and labels of a table with or without a first line of names."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = [[field.strip() for field in row] for row in csv.reader(lines, delimiter=separator)]
    head = [name.lower() for name in rows[0]]
    files = [head.index(name) for name in FILE_COLUMNS if name in head]
    labels = [head.index(name) for name in LABEL_COLUMNS if name in head]
    if files and labels:
        file, label, rows = files[0], labels[0], rows[1:]
    elif len(head) == 2 and not files and not labels:
        file, label = 0, 1
    else:
        raise InputError(
            f"{path}: expected a column of files ({', '.join(FILE_COLUMNS[:3])}) and one of labels "
            f"({', '.join(LABEL_COLUMNS[:4])}), got {listed(rows[0], 6)}."
        )
    short = [number for number, row in enumerate(rows, 1) if len(row) <= max(file, label)]
    if short or not all(row[file] and row[label] for row in rows):
        number = short[0] if short else next(
            n for n, row in enumerate(rows, 1) if not (row[file] and row[label])
        )  # fmt: skip
        raise InputError(f"{path}: row {number}: expected a file and a label, got less.")
    # Kaggle's column holds the boxes of the image's objects after the synset
    boxes = head[label] == "predictionstring"
    return [(row[file], row[label].split()[0] if boxes else row[label]) for row in rows]


def _answers_in_json(path: Path) -> dict[str, Answers]:
    kind = list[list[int]] | dict[str, int | str | list[int]]
    found: Any = read_json_file(path, kind)  # type: ignore[arg-type]
    if isinstance(found, list):
        rows = {VALIDATION_IMAGE.format(i): answers for i, answers in enumerate(found, 1)}
    else:
        rows = found
    return {
        name: tuple(answers) if isinstance(answers, list) else (answers,)
        for name, answers in rows.items()
    }


def _classes_in_json(path: Path) -> list[str]:
    """Return the names in a list, or in a table of names and numbers, either way round."""
    kind = list[str] | dict[str, int | str | list[str]]
    found: Any = read_json_file(path, kind)  # type: ignore[arg-type]
    if isinstance(found, list):
        return found
    if all(isinstance(value, int) for value in found.values()):
        found = {str(number): name for name, number in found.items()}
    if sorted(found) != sorted(map(str, range(len(found)))):
        raise InputError(f"{path}: expected classes 0 to {len(found) - 1}, got other numbers.")
    ordered = [found[str(number)] for number in range(len(found))]
    return [value[0] if isinstance(value, list) else value for value in ordered]


def _ilsvrc_synsets(path: Path, ids: Path) -> dict[int, str]:
    """Return the synsets of ImageNet's own ids, which are in another order than the synsets."""
    if not path.is_file():
        raise InputError(
            f"{ids}: expected {META} of the development kit beside it, which names its ids, got "
            "none. Put it there, or give a file with an image and a class in each line."
        )
    from scipy.io import loadmat

    try:
        if path.stat().st_size > LARGEST_META:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        rows = loadmat(path, variable_names=["synsets"], squeeze_me=True)["synsets"]
        named = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
        if not all(map(SYNSET.fullmatch, named.values())):
            raise ValueError("other names than synsets")
    except Exception as error:
        raise InputError(
            f"{path}: expected {META} of ImageNet's development kit, got {error}."
        ) from error
    return named
