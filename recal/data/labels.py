"""Images with labels, and the order of their classes, from files of their own."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recal.data.images import ImageSource, numbered
from recal.data.label_files import Answers, read_classes, read_labels
from recal.data.splits import split_word
from recal.errors import InputError, did_you_mean, listed

CLASSES = "classes.txt"
LABEL_FILES = ("labels.csv", "labels.tsv", "metadata.csv")
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# of ImageNet's validation images, in the folders above them too
OF_IMAGENET = (GROUND_TRUTH, f"ILSVRC2012_devkit_t12/data/{GROUND_TRUTH}", "LOC_val_solution.csv")
FOLDERS_ABOVE = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelledImages:
    """Some images of a source with labels from elsewhere: an `ImageSource`.

    Attributes:
        source: The images.
        indices: Numbers of the images that are used, int64 (N,).
        labels: Label of each image that is used, int64 (N,).
        classes: Names of the classes in the order of the labels, or None.
        ordered: Whether that order is given, and not that of the sorted names.
        answers: All right answers of each image, int64 (N, A), rising, rows filled up with their
            first; None where there is one for each.
    """

    source: ImageSource
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    classes: tuple[str, ...] | None
    ordered: bool
    answers: NDArray[np.int64] | None = None

    @property
    def where(self) -> Path:
        """The folder or file of the images."""
        return self.source.where

    @cached_property
    def names(self) -> tuple[str, ...] | None:
        """The path of each image below `where`, with slashes, or None for rows of arrays."""
        names = self.source.names
        return None if names is None else tuple(names[index] for index in self.indices.tolist())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.source[int(self.indices[index])]

    def name(self, index: int) -> str:
        """Return the name of image `index` in messages."""
        return self.source.name(int(self.indices[index]))

    def fingerprint(self, indices: Sequence[int]) -> str:
        """Return a hash of these images' names, contents and labels, in hexadecimal."""
        chosen = list(indices)
        digest = sha256(self.source.fingerprint(self.indices[chosen].tolist()).encode())
        for part in (self.labels, self.answers):
            digest.update(b"" if part is None else part[chosen].astype("<i8").tobytes())
        return digest.hexdigest()


def labelled(
    source: ImageSource, *, labels: Path | None, classes: Path | None, synsets: Path | None = None
) -> ImageSource:
    """Return images with the labels of a file, and the classes of a list; None leaves them.

    Args:
        source: The images.
        labels: File of labels: see `read_labels`.
        classes: File with the names of the classes in order: see `read_classes`.
        synsets: The file that names the ids of ImageNet's ground truth; None is `meta.mat` beside
            it.

    Raises:
        InputError: A file is malformed, or does not fit the images.
    """
    names = None if classes is None else read_classes(classes)
    if labels is not None:
        return _with_answers(source, read_labels(labels, synsets), labels, names)
    if names is None or source.labels is None:
        return source
    numbers, own = source.labels, source.classes
    if own is not None and not source.ordered:
        numbers = _places(own, names, source.where)[numbers]
    elif numbers.min() < 0 or numbers.max() >= len(names):
        raise InputError(
            f"{classes}: expected the names of labels {numbers.min()} to {numbers.max()} of "
            f"{source.where}, got {len(names)} names."
        )
    every = np.arange(len(source))
    return LabelledImages(source=source, indices=every, labels=numbers, classes=names, ordered=True)


def with_found_labels(source: ImageSource) -> ImageSource:
    """Return images with the label file and class list that lie beside them, if any.

    Images that have labels keep them, and classes whose order is known keep it.
    """
    base = source.where if source.where.is_dir() else source.where.parent
    is_split = source.where.is_dir() and split_word(base.name) is not None
    classes = None
    if not source.ordered:
        lists = [place / CLASSES for place in ((base, base.parent) if is_split else (base,))]
        classes = next(filter(Path.is_file, lists), None)
    labels = None
    if source.labels is None and source.names:
        places = [base / name for name in LABEL_FILES]
        if is_split:
            places += [base.parent / f"{base.name}{end}" for end in (".csv", ".tsv", ".txt")]
        found = [path for path in places if path.is_file()]
        if PurePosixPath(source.names[0]).name.startswith("ILSVRC2012_val_") and not found:
            above = [base, *base.absolute().parents[:FOLDERS_ABOVE]]
            paths = (folder / name for folder in above for name in OF_IMAGENET)
            found = [*filter(Path.is_file, paths)][:1]
        if len(found) > 1:
            raise InputError(f"{base}: expected one file of labels, got {listed(found)}. Keep one.")
        labels = next(iter(found), None)
    return labelled(source, labels=labels, classes=classes)


def nearest_answers(
    scores: NDArray[np.floating[Any]], answers: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the right answer with the largest score of each image, int64 (N,).

    A prediction is right if it is this answer. Ties go to the lower class.

    Args:
        scores: Logits, (N, K).
        answers: Right answers of each image, int64 (N, A), rising.
    """
    best = np.take_along_axis(scores, answers, axis=1).argmax(axis=1)
    return np.take_along_axis(answers, best[:, None], axis=1)[:, 0]


def _with_answers(
    source: ImageSource,
    table: Mapping[str, Answers],
    where: Path,
    names: tuple[str, ...] | None,
) -> LabelledImages:
    """Return the images of a source that have answers; each must be in the table."""
    if source.names is None:
        raise InputError(f"{source.where}: expected images with names, for {where}, got arrays.")
    own, known = _keys(source.names, table)
    answers_of = dict(zip(known, table.values(), strict=True))
    missing = [name for name, key in zip(source.names, own, strict=True) if key not in answers_of]
    if missing:
        raise InputError(
            f"{where}: expected a label for each of {len(source):,} images of {source.where}, got "
            f"none for {len(missing):,}: {listed(missing)}."
        )
    rows = [answers_of[key] for key in own]
    kept = [index for index, row in enumerate(rows) if row]
    flat = [answer for index in kept for answer in rows[index]]
    if not flat:
        raise InputError(f"{where}: expected labels, got none for the images of {source.where}.")
    named = [isinstance(answer, str) for answer in flat]
    if any(named) and not all(named):
        raise InputError(f"{where}: expected all labels as names or all as numbers, got both.")
    classes = names
    if all(named):
        texts = [str(answer) for answer in flat]
        found, numbers = numbered(texts)
        classes = names or found
        if names is not None:
            numbers = _places(found, names, where)[numbers]
    else:
        numbers = np.array(flat, np.int64)
        if names is not None and (numbers.min() < 0 or numbers.max() >= len(names)):
            raise InputError(
                f"{where}: expected labels 0 to {len(names) - 1}, got {numbers.min()} to "
                f"{numbers.max()}."
            )
    lengths = np.array([len(rows[index]) for index in kept])
    answers = _filled(numbers, lengths)
    return LabelledImages(
        source=source,
        indices=np.array(kept, np.int64),
        labels=answers[:, 0].copy(),
        classes=classes,
        ordered=names is not None or not all(named),
        answers=answers if answers.shape[1] > 1 else None,
    )


def _filled(numbers: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return rows of these lengths, rising, filled up with their first number."""
    rows = [np.unique(row) for row in np.split(numbers, lengths.cumsum()[:-1])]
    filled = np.empty((len(rows), max(map(len, rows))), np.int64)
    for number, row in enumerate(rows):
        filled[number] = row[0]
        filled[number, filled.shape[1] - len(row) :] = row
    return filled


def _keys(names: Iterable[str], table: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return what images and labels are matched by: the files' names, or paths if these repeat."""
    stems = ([PurePosixPath(name).with_suffix("") for name in part] for part in (names, table))
    # the hub's ImageNet adds the synset to the name of a validation image
    paths = [[re.sub(r"(ILSVRC2012_val_\d{8})_n\d{8}$", r"\1", str(p)) for p in s] for s in stems]
    files = [[path.rpartition("/")[2] for path in part] for part in paths]
    unique = all(len(set(part)) == len(part) for part in files)
    own, known = files if unique else paths
    return own, known


def _places(names: Sequence[str], classes: Sequence[str], where: Path) -> NDArray[np.int64]:
    """Return the place of each name in a list of classes."""
    place = {name: number for number, name in enumerate(classes)}
    strangers = [name for name in names if name not in place]
    if strangers:
        raise InputError(
            f"{where}: expected classes of the list of {len(classes)}, got {listed(strangers)}."
            f"{did_you_mean(strangers[0], classes)}"
        )
    return np.array([place[name] for name in names], np.int64)
