"""Suites: what a file may say, which classes a folder is of, and which images are used."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from recal.corruptions.parameters import CORRUPTIONS, EXTRA_CORRUPTIONS
from recal.datasets.catalogue import catalogue, wnids
from recal.errors import InputError, UsageError
from recal.suites.locate import choose_images
from recal.suites.suite import (
    class_count,
    class_numbers,
    kept_logits,
    load_suite,
    read_suite,
    suite_names,
    usual_suite,
)
from tests.published_sets import SUITE, write_suite


@pytest.mark.parametrize("name", suite_names())
def test_shipped_suite_is_complete(name):
    suite = load_suite(name)
    assert suite.title
    assert suite.source
    assert suite.clean.folders
    corrupted = suite.corrupted
    if corrupted.corruptions and name != "sample":
        assert len(corrupted.severities) == 5
        assert corrupted.rows in (10_000, 50_000)
        assert corrupted.size in (32, 64, 224)
    if corrupted.parameters:
        assert set(corrupted.corruptions) <= {*CORRUPTIONS, *EXTRA_CORRUPTIONS}
    for data in (corrupted.data, suite.clean.data):
        assert data in {"", *catalogue()}


def test_standard_and_extra_corruptions_are_suites_of_their_own():
    for name in ("cifar10c", "cifar100c", "imagenetc"):
        assert load_suite(name).corrupted.corruptions == CORRUPTIONS
        assert load_suite(f"{name}-extra").corrupted.corruptions == EXTRA_CORRUPTIONS


def test_reference_of_imagenet_c_is_alexnets():
    """Their mean is AlexNet's mean corruption error, 78.8 %, as the literature has it."""
    reference = load_suite("imagenetc").reference
    assert tuple(reference.errors) == CORRUPTIONS
    assert np.mean(list(reference.errors.values())) == pytest.approx(0.788, abs=0.001)
    assert reference.clean_error == pytest.approx(0.435)
    assert load_suite("cifar10c").reference is None


def test_usual_suite_is_the_clean_one():
    assert usual_suite("cifar", 10).name == "cifar10"
    assert usual_suite("cifar", 100).name == "cifar100"
    assert usual_suite("imagenet", 1000).name == "imagenet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rows = 20", "rowz = 20"), r"corrupted: expected one of .*got 'rowz'.*'rows'"),
        (('"folders"', '"tars"'), "layout: expected one of arrays, folders, got 'tars'"),
        (('"cifar"', '"cifr"'), "family: expected one of .*Did you mean 'cifar'"),
        (("classes = 10", 'classes = "10"'), "classes: expected an integer >= 1, got '10'"),
        (("classes = 10", ""), "classes missing"),
        (("[1, 2]", "[2, 1]"), r"severities: expected rising numbers from 1 on, got \[2, 1\]"),
        (("[1, 2]", "[0, 1]"), "expected rising numbers from 1 on"),
        (("[1, 2]", "[true, 2]"), "severities 1: expected an integer, got True"),
        (('"snow"', '"fog"'), "expected each name once"),
        (('"snow"', '"../snow"'), "expected plain names, got '../snow'"),
        (('layout = "folders"', 'data = "imagenetcc"'), "Did you mean 'imagenetc'"),
        (("rows = 20", "rows = -1"), "rows: expected an integer >= 0, got -1"),
        (("rows = 20", 'parameters = "cifar"'), None),
        (('["fog", "snow"]', '["fog", "snw"]\nparameters = "cifar"'), "Did you mean 'snow'"),
        (("[clean]", 'order = "wnid"\n[clean]'), "order: expected one of .*'wnids'"),
        (("[clean]", '[clean]\narrays = ["a.npy"]'), "files of images and of labels, got 1"),
        (('["Small-C"]', "[5]"), "folders 1: expected a string, got 5"),
        (('["fog", "snow"]', '["fog", {}]'), "corruptions 2: expected a string, got {}"),
        (('folders = ["Small-C"]\n', ""), "expected `folders` with the published images"),
        (("[clean]", "[reference]\nsource = 'x'\nerrors = {fog = 0.5}\n[clean]"), "snow missing"),
        (("[clean]", "[reference]\nsource = 'x'\nerrors = {fog = 0.5, snow = 50}\n[clean]"),
         "snow: expected a fraction above 0, got 50"),
        (("[clean]", "[reference]\nsource = 'x'\nerrors = {fog = 0.5, snow = 0.0}\n[clean]"),
         "snow: expected a fraction above 0"),
    ],
)  # fmt: skip
def test_slips_in_a_suite_file_are_named(tmp_path, change, message):
    path = write_suite(tmp_path, SUITE.replace(*change))
    if message is None:
        assert read_suite(path).corrupted.parameters == "cifar"
        return
    with pytest.raises(InputError, match=message):
        read_suite(path)


def test_suite_is_found_by_name_or_file(tmp_path):
    assert (
        load_suite(str(write_suite(tmp_path))).cells()
        == read_suite(tmp_path / "small.toml").cells()
    )
    with pytest.raises(UsageError, match=r"or a \.toml file, got 'imagenet-c'.*Did you mean"):
        load_suite("imagenet-c")
    with pytest.raises(UsageError, match="Did you mean 'cifar10-pgd' or 'cifar100-pgd' or "):
        load_suite("pgd")
    with pytest.raises(InputError, match="cannot be read"):
        load_suite("nowhere.toml")


def test_class_folders_get_the_numbers_of_logits():
    here = Path("x")
    numbers = class_numbers(
        [str(i) for i in sorted(map(str, range(1000)))], load_suite("imagenet-v2"), here
    )
    # ImageFolder would take the sorted position: '10' is third, and class 10 all the same
    assert numbers[:4].tolist() == [0, 1, 10, 100]
    imagenet = load_suite("imagenet")
    order = wnids("imagenet")
    assert len(set(order)) == 1000
    assert class_numbers(["n02123045", "n01440764"], imagenet, here).tolist() == [
        order.index("n02123045"), 0,
    ]  # fmt: skip
    # tabby is class 281 of every ImageNet network
    assert order.index("n02123045") == 281
    hundred = [str(i) for i in range(100)]
    cifar100 = load_suite("cifar100")
    assert class_numbers(hundred, cifar100, here).tolist() == list(range(100))
    assert class_numbers(sorted(hundred), cifar100, here).tolist() == sorted(range(100), key=str)


@pytest.mark.parametrize(
    ("suite", "folders", "message"),
    [
        ("imagenet", ["n01440764", "tench"], "got 'tench'"),
        ("imagenet-a", ["n01440764"], r"\(200 classes of suite imagenet-a\), got 'n01440764'"),
        ("imagenet-v2", ["0", "1000", "x"], "got '1000' and 1 more"),
        ("cifar10", ["cat", "dog"], "expected 10 class folders, got 2"),
    ],
)
def test_strange_class_folders_are_refused(suite, folders, message):
    with pytest.raises(InputError, match=message):
        class_numbers(folders, load_suite(suite), Path("x"))


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_subset_keeps_the_logits_of_its_classes(name):
    suite, order = load_suite(name), wnids("imagenet")
    kept = kept_logits(suite)
    assert class_count(suite) == len(kept) == 200
    assert (np.diff(kept) > 0).all()
    assert [order[i] for i in kept] == list(wnids(suite.subset))
    assert class_numbers(wnids(suite.subset), suite, Path()).tolist() == list(range(200))
    assert kept_logits(load_suite("imagenet")) is None


LABELS = np.repeat(np.arange(10), 600)


@given(st.integers(1, 6000), st.integers(0, 5))
def test_sample_of_any_size_is_even_over_the_classes(limit, seed):
    suite = load_suite("cifar10")
    chosen = choose_images(suite, LABELS, None, Path(), limit=limit, seed=seed)
    counts = np.bincount(LABELS[chosen], minlength=10)
    assert len(chosen) == len(set(chosen.tolist())) == limit
    assert counts.max() - counts.min() <= 1


def test_first_images_need_the_published_order():
    suite = load_suite("robustbench-cifar10c")
    labels = np.arange(10_000) % 10
    options = {"limit": None, "seed": 0}
    assert choose_images(suite, labels, None, Path(), **options).tolist() == list(range(5000))
    with pytest.raises(InputError, match="takes the first 5,000, got files in class folders"):
        choose_images(suite, labels, ["a/b"] * 10_000, Path(), **options)


def test_listed_images_are_chosen_by_class_and_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = replace(load_suite("robustbench-imagenetc"), names="list.txt")
    names = ["n1/a.JPEG", "n1/b.JPEG", "n2/a.JPEG", "n2/c.png"]
    labels = np.array([0, 0, 1, 1])
    options = {"limit": None, "seed": 0}
    with pytest.raises(InputError, match=r"expected the list list\.txt, got none in"):
        choose_images(suite, labels, names, Path(), **options)
    (tmp_path / "list.txt").write_text("n2/c.JPEG\nn1/b.JPEG\n", encoding="utf-8")
    assert choose_images(suite, labels, names, Path(), **options).tolist() == [1, 3]
    (tmp_path / "list.txt").write_text("n2/d.JPEG\nn1/b.JPEG\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"got a set without 'n2/d\.JPEG'"):
        choose_images(suite, labels, names, Path(), **options)
    with pytest.raises(InputError, match="got arrays"):
        choose_images(suite, labels, None, Path(), **options)


def test_documentation_names_every_suite_and_its_example_loads(tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in suite_names() if f"`{name}`" not in text] == []
    example = text.partition("```toml\n")[2].partition("```")[0]
    suite = read_suite(write_suite(tmp_path, example))
    assert len(suite.cells()) == 9
    commented = example.replace("\n# [", "\n[").replace("\n# source", "\nsource")
    commented = commented.replace("\n# clean", "\nclean").replace("\n# errors", "\nerrors")
    reference = read_suite(write_suite(tmp_path, commented)).reference
    assert reference.errors == {"rain": 0.5, "fog": 0.4, "dusk": 0.6}
