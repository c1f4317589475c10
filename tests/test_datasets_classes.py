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


def labels_of(found, classes, family="cifar"):
    return class_answers(found, network_order(classes, family, found.classes))[:, 0].tolist()


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


def test_folders_of_other_names_are_refused_by_a_network_of_imagenet_as_by_its_suite():
    names = tuple(f"thing {i:03d}" for i in range(1000))
    by_suite = ClassOrder(count=1000, names=wnids("imagenet"), what="a network of 1000 classes")
    of_network = network_order(1000, "imagenet", names)
    assert of_network == by_suite
    for given in (names, tuple(map(str, range(1000)))):
        with pytest.raises(InputError, match=r"such as 'n01440764' .* classes\.txt"):
            labels_of(source([7], given), 1000, "imagenet")
    # a given order, and numbers without names, need no names of synsets
    assert labels_of(source([7], names, ordered=True), 1000, "imagenet") == [7]
    assert labels_of(source([7], None), 1000, "imagenet") == [7]
    # networks of other data sets have no names to compare with, and 999 classes are not ImageNet's
    assert labels_of(source([7], names), 1000) == [7]
    assert labels_of(source([7], names[:999]), 999, "imagenet") == [7]


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
