"""Names of classes become the numbers of a network's classes, or are refused by name."""

from pathlib import Path

import numpy as np
import pytest

from recal.data.images import ArraySource
from recal.datasets.catalogue import wnids
from recal.datasets.classes import ClassOrder, class_answers, network_order
from recal.errors import InputError

HERE = Path("here")


def source(labels, classes, *, ordered=False):
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    return ArraySource(HERE, images, np.array(labels), classes, ordered)


def labels_of(found, classes):
    return class_answers(found, network_order(classes, found.classes))[:, 0].tolist()


def test_a_part_of_imagenet_is_numbered_by_name():
    order = wnids("imagenet")
    part = source([0, 1, 0], (order[985], order[3]))
    assert labels_of(part, 1000) == [985, 3, 985]


def test_sorted_folders_are_the_classes_if_all_are_there():
    assert labels_of(source([2, 0, 1], ("ape", "bee", "cat")), 3) == [2, 0, 1]
    numbers = tuple(sorted(map(str, range(12))))
    assert labels_of(source([2], numbers), 12) == [int(numbers[2])]


def test_a_given_order_wins_over_the_sorted_one_and_not_over_synsets():
    assert labels_of(source([2, 0], ("cat", "bee", "ape"), ordered=True), 3) == [2, 0]
    synsets = tuple(reversed(wnids("imagenet")))
    assert labels_of(source([0], synsets, ordered=True), 1000) == [999]
    names = tuple(f"thing {i}" for i in range(1000))
    imagenet = ClassOrder(count=1000, names=wnids("imagenet"), what="suite imagenet")
    assert class_answers(source([7], names, ordered=True), imagenet).tolist() == [[7]]
    with pytest.raises(InputError, match="here: expected class folders such as 'n01440764'"):
        class_answers(source([7], names), imagenet)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (source([0, 1], ("ape", "bee")), "here: expected 3 class folders, got 2"),
        (source([0, 3], None), "here: expected labels 0 to 2 .*got 0 to 3"),
        (source([-1, 2], None), "got -1 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(found, message):
    with pytest.raises(InputError, match=message):
        labels_of(found, 3)
