"""From the names of classes in a data set to the numbers of a network's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recal.data.images import ImageSource
from recal.data.label_files import SYNSET
from recal.datasets.catalogue import wnids
from recal.errors import InputError, listed


@dataclass(frozen=True, kw_only=True)
class ClassOrder:
    """The order of a network's classes.

    Attributes:
        count: Number of classes, K.
        names: Name of class n, for each n; None where class n is the n-th of the sorted names.
        others: Names of classes whose images are left out.
        what: Phrase for what has these classes, for messages.
    """

    count: int
    names: tuple[str, ...] | None = None
    others: frozenset[str] = frozenset()
    what: str

    def numbers(
        self, names: Sequence[str], where: Path, *, ordered: bool = False
    ) -> NDArray[np.int64]:
        """Return the class of each name, int64 (len(names),), or -1 for one of the others.

        Known names are found by name. Others are the classes in order if a list of all K classes
        gives them in order (`ordered`).

        Raises:
            InputError: A name is none of the classes, or some of the sorted names are missing. The
                message is about `where`.
        """
        if ordered and len(names) == self.count and not set(names) <= set(self.names or ()):
            return np.arange(self.count)
        known: Sequence[str] | None = self.names
        if known is None:
            if len(names) != self.count:
                given = "list" if ordered else "folders"
                raise InputError(
                    f"{where}: expected {self.count} class folders, got {len(names)}. "
                    f"Give the class {given} of all {self.count} classes of {self.what}."
                )
            # folders 0 to 99 are in the order of their numbers, not of their letters
            counted = all(name.isdecimal() for name in names)
            known = sorted(names, key=int if counted else None)
        place = {name: number for number, name in enumerate(known)}
        place |= dict.fromkeys(self.others, -1)
        strangers = [f"'{name}'" for name in names if name not in place]
        if strangers:
            raise InputError(
                f"{where}: expected class folders such as '{known[0]}' ({len(known)} classes of "
                f"{self.what}), got {listed(strangers, 1)}. A file classes.txt with the name of "
                "each class, in the network's order, names them."
            )
        return np.array([place[name] for name in names], np.int64)


def network_order(classes: int, family: str, names: Sequence[str] | None) -> ClassOrder:
    """Return the order of a network's classes where no suite declares it.

    It is that of ImageNet, which names its classes by synsets, if the network has 1000 classes and
    is of the family `imagenet` or `names` are synsets. It is the sorted order of the names
    otherwise.
    """
    synsets = bool(names) and all(map(SYNSET.fullmatch, names or ()))
    known = wnids("imagenet") if classes == 1000 and (family == "imagenet" or synsets) else None
    return ClassOrder(count=classes, names=known, what=f"a network of {classes} classes")


def class_answers(source: ImageSource, order: ClassOrder) -> NDArray[np.int64] | None:
    """Return the network's classes that are right for each image, int64 (N, A), rising.

    A is 1 unless images have several right answers; rows are filled up. Images of classes that are
    left out have -1. It is None for images without labels.

    Raises:
        InputError: Names or numbers of the data's classes do not fit the order.
    """
    if source.labels is None:
        return None
    answers = source.labels[:, None] if source.answers is None else source.answers
    if source.classes is not None:
        numbers = order.numbers(source.classes, source.where, ordered=source.ordered)
        answers = np.sort(numbers[answers], axis=1)
    if answers.min() < (-1 if order.others else 0) or answers.max() >= order.count:
        raise InputError(
            f"{source.where}: expected labels 0 to {order.count - 1} of {order.what}, got "
            f"{answers.min()} to {answers.max()}. Is this another data set?"
        )
    return answers
