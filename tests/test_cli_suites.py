"""`recal suites`, and `recal eval --plan`."""

import json

import pytest

from recal.suites.suite import suite_names
from tests.published_sets import write_folders, write_suite


def test_suites_are_listed_with_what_is_here(recal, tmp_path, monkeypatch):
    (tmp_path / "data" / "CIFAR-10-C").mkdir(parents=True)
    (tmp_path / "data" / "ImageNet-C.tar").touch()
    status, out, _ = recal("suites")
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert set(suite_names()) <= set(lines)
    assert " yes " in lines["cifar10c"]
    assert " yes " in lines["imagenetc"]
    assert " - " in lines["imagenet-a"]
    assert " to be made " in lines["sample"]
    status, out, _ = recal("suites", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["cifar10c"]["corrupted"] == "data/CIFAR-10-C"
    assert rows["cifar10c"]["missing"] == "cifar-10-batches-py/, `recal data fetch cifar10`"
    assert rows["imagenet-v2"]["missing"].endswith(
        "from huggingface.co/datasets/vaishaal/ImageNetV2"
    )
    assert not rows["cifar100c"]["ready"]


def test_suites_are_looked_for_where_one_says(recal, tmp_path):
    (tmp_path / "here" / "CIFAR-10-C").mkdir(parents=True)
    (tmp_path / "data" / "CIFAR-100-C").mkdir(parents=True)

    def ready(*arguments):
        _, out, _ = recal("suites", "--json", *arguments)
        return {row["name"] for row in json.loads(out) if row["ready"]} - {"sample", "sample-pgd"}

    assert ready() == {"cifar100c", "cifar100c-extra"}
    found = {"cifar10c", "cifar10c-extra", "robustbench-cifar10c"}
    assert ready("--data", tmp_path / "here") == found
    assert ready("--data", tmp_path / "here" / "CIFAR-10-C") == found
    (tmp_path / "recal.toml").write_text("[data]\ndata = 'here'\n", encoding="utf-8")
    assert ready() == found


def test_one_suite_is_described_whole(recal, tmp_path):
    status, out, _ = recal("suites", "imagenetc")
    assert status == 0
    for words in ("arXiv 1903.12261", "224x224 pixels, used as they are", "AlexNet", "order: wnids",
                  "jpeg_compression", "recal data fetch imagenetc"):  # fmt: skip
        assert words in out, words
    status, out, _ = recal("suites", str(write_suite(tmp_path)))
    assert "Small corrupted folders" in out
    assert recal("suites", "imagenet-b")[0] == 2


def test_a_suite_file_of_ones_own_is_evaluated(recal, tmp_path, split_checkpoint):
    write_folders(tmp_path / "Small-C")
    suite = write_suite(tmp_path)
    status, out, _ = recal("eval", split_checkpoint, "--suite", suite, "--data", tmp_path)
    assert status == 0
    assert "Small corrupted folders" in out
    assert "onnxruntime, " in out
    assert "batches of 256" in out


@pytest.mark.parametrize("as_json", [False, True])
def test_plan_says_what_it_takes_and_does_nothing(recal, tmp_path, split_checkpoint, as_json):
    write_folders(tmp_path / "Small-C")
    suite = write_suite(tmp_path)
    status, out, _ = recal(
        "eval", split_checkpoint, f"{split_checkpoint}:aux0", "--suite", suite, "--data", tmp_path,
        "--plan", *(["--json"] if as_json else []),
    )  # fmt: skip
    assert status == 0
    assert not (tmp_path / "runs").exists()
    if as_json:
        plan = json.loads(out)
        assert (plan["cells"], plan["images"], plan["forwards"]) == (4, 80, 160)
        size = sum(path.stat().st_size for path in (tmp_path / "Small-C").rglob("*.JPEG"))
        assert plan["bytes"] == size
    else:
        for words in ("nothing has been evaluated", "4 of each of 2 targets", "80, each read once",
                      "160 forward passes", " MB", "time      about"):  # fmt: skip
            assert words in out, words


def test_plan_names_what_would_fail(recal, tmp_path, split_checkpoint, class_folders, monkeypatch):
    from recal import corruptions
    from recal.errors import InputError

    real = corruptions.corrupt

    def corrupt(images, name, severity, **options):
        if name == "frost":
            raise InputError("frost: expected textures, got none.")
        return real(images, name, severity, **options)

    monkeypatch.setattr(corruptions, "corrupt", corrupt)
    status, out, err = recal(
        "eval", split_checkpoint, "--suite", "cifar10c", "--data", class_folders, "--plan",
        "--corruptions", "frost,contrast",
    )  # fmt: skip
    assert status == 1
    assert "would fail: frost: " in err
    assert "time      about" in out
