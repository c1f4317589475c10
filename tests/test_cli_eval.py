"""`recal eval`, as people and programs call it."""

import json

import pytest


def test_eval_prints_a_table_and_leaves_a_run(recal, split_checkpoint, class_folders, tmp_path):
    status, out, _ = recal(
        "eval", split_checkpoint, f"{split_checkpoint}:aux0", "--suite", "cifar10c",
        "--data", class_folders, "--corruptions", "contrast,pixelate", "--severities", "1,5",
    )  # fmt: skip
    assert status == 0
    assert "(40 images, 5 of 76 cells)" in out
    assert "vs main [95 %]" in out
    assert "regenerated: not comparable digit for digit" in out
    run = next((tmp_path / "runs").iterdir())
    names = {path.name for path in run.iterdir()}
    assert {"run.json", "summary.json", "summary.csv", "report.html", "cells"} <= names
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    for loads in ("<script", "<link", "<img", "src=", 'href="http', "@import", "url(http"):
        assert loads not in page


def test_json_is_one_document_of_the_documented_form(recal, split_checkpoint, class_folders):
    status, out, _ = recal(
        "eval", f"{split_checkpoint}:aux0", split_checkpoint, "--suite", "cifar10",
        "--data", class_folders, "--json",
    )  # fmt: skip
    assert status == 0
    document = json.loads(out)
    assert document["suite"] == "cifar10"
    assert [row["target"] for row in document["cells"]] == [
        f"{split_checkpoint}:aux0", str(split_checkpoint),
    ]  # fmt: skip
    for cell in document["cells"]:
        assert cell["corruption"] is None
        assert cell["severity"] is None
        assert cell["n"] == 40
        assert 0 <= cell["accuracy"] <= 1
    assert {"target", "clean_accuracy", "mean_corruption_error"} <= set(document["summary"][0])


def test_every_format_is_of_the_same_numbers(recal, split_checkpoint, class_folders):
    import csv
    import io

    request = (
        "eval", split_checkpoint, f"{split_checkpoint}:aux0", "--suite", "cifar10",
        "--data", class_folders,
    )  # fmt: skip
    _, out, _ = recal(*request, "--json")
    row = json.loads(out)["summary"][0]
    _, out, err = recal(*request, "--format", "csv")
    found = next(csv.DictReader(io.StringIO(out)))
    assert float(found["clean_accuracy"]) == row["clean_accuracy"]
    assert float(found["clean_accuracy_low"]) == row["intervals"]["clean_accuracy"][0]
    assert "report.html" in err
    _, out, _ = recal(*request, "--format", "markdown")
    assert f"| main | {100 * row['clean_accuracy']:.2f} ±" in out
    assert "report.html" not in out


def test_adapted_targets_are_marked_in_every_format(recal, split_checkpoint, class_folders):
    request = (
        "eval", split_checkpoint, "--suite", "cifar10", "--data", class_folders,
        "--adapt", "batch", "--batch-size", 20, "--prior", 16,
    )  # fmt: skip
    for form in ("plain", "markdown", "csv", "json"):
        _, out, _ = recal(*request, "--format", form)
        assert "(saw test data)" in out
        assert "prior 16 (Schneider et al. 2020), batches of 20" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prior", 3], "--prior: expected --adapt with it"),
        (["--adapt", "ema", "--prior", 3], "--prior: expected --adapt batch, got ema"),
        (["--adapt", "batch", "--momentum", 0.1], "--momentum: expected --adapt ema, got batch"),
        (["--continual", "fog-5"], "--continual: expected --adapt with it"),
        (["--adapt", "batch", "--samples", 32], "--samples: expected --adapt cell, got batch"),
    ],
)
def test_options_that_belong_to_adaptation_are_refused_without(
    recal, split_checkpoint, class_folders, arguments, message
):
    status, _, err = recal(
        "eval", split_checkpoint, "--suite", "cifar10", "--data", class_folders, *arguments
    )
    assert status == 2
    assert message in err


def test_without_anything_the_bundled_sample_is_evaluated(recal):
    status, out, err = recal("eval", "--limit", 100, "--severities", 5, "--corruptions", "contrast")
    assert status == 0
    assert err.startswith("No checkpoint given: using the bundled Fashion-MNIST sample.\n")
    assert "main" in out
    assert "aux0" in out


def test_cifar_suites_take_the_bundled_cifar_network(recal, class_folders):
    status, _, err = recal(
        "eval", "--suite", "cifar10c", "--data", class_folders, "--corruptions", "contrast"
    )
    assert status == 0
    assert err.startswith("No checkpoint given: using the bundled CIFAR-10 network.\n")


def test_missing_benchmark_names_the_places_and_both_ways_to_get_it(recal):
    status, _, err = recal("eval", "--suite", "cifar10c")
    assert status == 3
    for word in ("CIFAR-10-C", "regenerate", "$RECAL_DATA", "./data", "no-cache", "recal.toml"):
        assert word in err, word


def test_a_corruption_that_fails_alone_leaves_the_others_and_tells(
    recal, split_checkpoint, class_folders, tmp_path, monkeypatch
):
    from recal import corruptions
    from recal.errors import InputError

    real = corruptions.corrupt

    def corrupt(images, name, severity, **options):
        if name == "frost":
            raise InputError("frost: expected textures, got none.")
        return real(images, name, severity, **options)

    monkeypatch.setattr(corruptions, "corrupt", corrupt)
    status, out, err = recal(
        "eval", split_checkpoint, "--suite", "cifar10c", "--data", class_folders,
        "--corruptions", "frost,contrast", "--severities", 1,
    )  # fmt: skip
    assert status == 1
    assert "failed: frost-1: frost: expected textures, got none." in err
    assert "contrast" in out
    assert len(list(tmp_path.rglob("*.parquet"))) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--suite", "cifar10-c"], 2, "Did you mean 'cifar10c'?"),
        (["--suite", "cifar10c", "--corruptions", "contrst"], 2, "Did you mean 'contrast'?"),
        (["--suite", "cifar10c", "--severities", "6"], 2, "--severities"),
        (["--suite", "cifar10c", "--severities", "2.5"], 2, "expected integers from 1"),
        (["--suite", "cifar100"], 3, "expected a network of 100 classes"),
        (["--backend", "onnx"], 2, "Did you mean 'onnxruntime'?"),
        (["nothing.pth"], 3, "nothing.pth: expected a checkpoint or a variant"),
        (["nothing.onnx"], 3, "nothing.onnx: expected an ONNX file, but it does not exist"),
        (["aux0"], 2, "'aux0': expected a file, CHECKPOINT:BRANCH, or with --checkpoint the name"),
        (["--autocast", "int8"], 2, "'int8' is not one of"),
    ],
)
def test_wrong_requests_end_in_one_line_and_leave_no_run(
    recal, split_checkpoint, class_folders, tmp_path, arguments, status, message
):
    found, _, err = recal("eval", split_checkpoint, "--data", class_folders, *arguments)
    assert found == status
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("*.parquet"))


def test_the_same_target_twice_is_refused(recal, split_checkpoint):
    status, _, err = recal("eval", split_checkpoint, split_checkpoint)
    assert status == 2
    assert "is given twice" in err


def test_class_folders_of_another_number_are_refused(recal, split_checkpoint, tmp_path):
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "pets" / name / "a.png")
    status, _, err = recal("eval", split_checkpoint, "--suite", "cifar10", "--data", "pets")
    assert status == 3
    assert "expected 10 class folders, got 2" in err
