"""Every shipped TOML loads, and a slip in one is an error that says what was meant."""

import pytest

from recal.errors import InputError, UsageError
from recal.policies.families import family_names, load_family
from recal.policies.policy import load_policy, policy_names, read_policy
from recal.suites.suite import load_suite, read_suite, suite_names

POLICIES = [(family, name) for family in family_names() for name in policy_names(family)]


def test_families_have_the_three_modes():
    assert family_names() == ["cifar", "imagenet", "sample", "tiny"]
    for name in family_names():
        assert {"clean", "weak", "strong"} <= set(policy_names(name))


@pytest.mark.parametrize(("family", "name"), POLICIES)
def test_shipped_policy_gives_images_of_the_family_size(family, name):
    import numpy as np

    from recal.data.sampling import keyed_draws

    side = {"cifar": 32, "imagenet": 300, "sample": 28, "tiny": 64}[family]
    policy = load_policy(family, name)
    assert policy.summary.endswith(".")
    with keyed_draws(0, 0):
        image = policy.transform(load_family(family).preparation)(
            np.full((side, side, 3), 90, np.uint8)
        )
    size = load_family(family).size
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize("name", suite_names())
def test_shipped_suite_loads(name):
    suite = load_suite(name)
    assert suite.family in family_names()
    cells = suite.cells()
    assert len(cells) == len(suite.corrupted.corruptions) * len(suite.corrupted.severities)
    assert len({cell.name for cell in cells}) == len(cells)


def test_cifar10c_has_the_15_standard_corruptions():
    from recal.corruptions import CORRUPTIONS

    assert sorted(load_suite("cifar10c").corrupted.corruptions) == sorted(CORRUPTIONS)
    assert len(load_suite("cifar10c").cells()) == 75


RAND = "summary='a'\n[[op]]\nname='rand_augment'\ntranslate=1\nfill=[0, 0, 0]\n"

NOISE = "summary='a'\n[[op]]\nname='gaussian_noise'\n"
JITTER = "summary='a'\n[[op]]\nname='color_jitter'\n"
CROP = "summary = 'a'\n[[op]]\nname = 'random_crop'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("summary = 'a'\n[[op]]\nname = 'random_crop'\nsiz = 3", "got 'siz'. Did you mean 'size'?"),
        ("summary = 'a'\n[[op]]\nname = 'random_crp'", "Did you mean 'random_crop'?"),
        ("summary = 'a'\n[[op]]\nname = 'gaussian_noise'", "sigma missing"),
        (
            "summary = 'a'\n[[op]]\nname = 'random_crop'\nsize = 'big'",
            "expected an integer from 1 to 16384, got 'big'",
        ),
        (
            "summary = 'a'\n[[op]]\nname = 'random_crop'\nsize = true",
            "expected an integer from 1 to 16384, got True",
        ),
        ("summery = 'a'", "Did you mean 'summary'?"),
        ("summary = ", "expected TOML"),
        ("summary = 'a'\nop = 3", "op: expected a list, got 3"),
        ("summary = 'a'\n[[op]]\nname = []", "op 1: name: expected one of"),
        (
            RAND + "magnitud=9",
            "op 1: expected one of n, magnitude, mstd, increasing,",
        ),
        (RAND + "magnitud=9", "Did you mean 'magnitude'?"),
        (RAND + "magnitude=15", "op 1: magnitude: expected an integer from 0 to 10, got 15."),
        (RAND + "mstd=nan", "mstd: expected a finite number, got nan."),
        (RAND + "n=0", "n: expected an integer from 1 to 16, got 0."),
        (RAND + "increasing=1", "increasing: expected true or false, got 1."),
        (RAND.replace("[0, 0, 0]", "[0]"), "fill: expected 3 integers from 0 to 255, got [0]."),
        (
            RAND.replace("[0, 0, 0]", "[0, 0, 256]"),
            "fill 3: expected an integer from 0 to 255, got 256.",
        ),
        (
            RAND.replace("[0, 0, 0]", "[0, 0, 0.5]"),
            "fill 3: expected an integer from 0 to 255, got 0.5.",
        ),
        ("summary='a'\n[[op]]\nname='resize'\nsize=9\ninterpolation='x'", "of bicubic, bilinear,"),
        (
            "summary='a'\n[[op]]\nname='resize'\nsize=9\ninterpolation='bicubc'",
            "Did you mean 'bicubic'?",
        ),
        (
            "summary='a'\n[[op]]\nname='gaussian_noise'\nsigma=-0.1",
            "expected a number from 0 to 1, got -0.1.",
        ),
        (
            "summary='a'\n[[op]]\nname='color_jitter'\nhue=0.6",
            "hue: expected a number from 0 to 0.5, got 0.6.",
        ),
    ],
)
def test_policy_file_with_a_slip_is_refused_by_place(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.toml") as caught:
        read_policy(path)
    assert message in str(caught.value)


def test_suite_file_with_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "title='a'\nfamily='cifar'\nclasses=10\n[corrupted]\nseverity=[1]", encoding="utf-8"
    )
    with pytest.raises(InputError, match="Did you mean 'severities'"):
        read_suite(path)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'weak'"):
        load_policy("cifar", "week")
    with pytest.raises(UsageError, match="Did you mean 'cifar10c'"):
        load_suite("cifar10-c")
    with pytest.raises(UsageError, match="Did you mean 'contrast'"):
        load_suite("cifar10c").cells(["contrasts"])
    with pytest.raises(UsageError, match="severities"):
        load_suite("cifar10c").cells([], [6])
