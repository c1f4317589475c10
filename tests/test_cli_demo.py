"""`recal demo`: the whole flow on what ships with the package, offline."""

import json
import re
import socket

import numpy as np
import pytest

from recal.data.folders import open_images
from recal.files import sample_checkpoint, sample_folder, sample_images


@pytest.mark.slow
def test_demo_leaves_variants_model_results_and_report_and_needs_no_network(
    recal, tmp_path, monkeypatch
):
    def refuses(*_args, **_kwargs):
        raise OSError("the demo must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuses)
    status, out, _ = recal("demo", "-o", "made")
    assert status == 0
    made = tmp_path / "made"
    assert {p.name for p in (made / "variants").iterdir()} == {
        "main-clean.safetensors", "main-weak.safetensors", "aux0-strong.safetensors",
    }  # fmt: skip
    assert (made / "model.onnx").is_file()
    assert "<svg" in (made / "report.html").read_text(encoding="utf-8")
    document = json.loads((made / "run" / "summary.json").read_text(encoding="utf-8"))
    assert len(document["cells"]) == 5 * 8
    rows = {row["label"]: row for row in document["summary"]}
    # the trade-off that the sample is there to show
    assert rows["aux0"]["clean_difference"]["high"] < 0
    assert rows["aux0"]["corrupted_difference"]["low"] > 0.02
    equal, total = re.search(r"as the variant on ([\d,]+) of ([\d,]+) test", out).groups()
    assert equal == total == "2,000"
    assert "recal inspect CHECKPOINT" in out


@pytest.mark.parametrize("split", ["train", "test"])
def test_bundled_images_are_balanced(split):
    source = open_images(sample_images(), split)
    assert len(source) == 2000
    assert np.bincount(source.labels).tolist() == [200] * 10
    assert source[0].shape == (28, 28, 3)


def test_sample_is_small_and_carries_its_notice():
    files = [path for path in sample_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    notice = (sample_folder() / "NOTICE.md").read_text(encoding="utf-8")
    assert "Zalando" in notice
    assert "train_splitbn.py" in notice
    for family in ("sample", "cifar"):
        assert sample_checkpoint(family).is_file()
