"""docs/deployment.md: its example runs, and what it lists is what there is."""

import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from recal import build, load_checkpoint
from recal.data.normalise import normalise_array
from tests.command_options import options_of

TEXT = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text(encoding="utf-8")


def test_the_serving_example_runs(recal, split_checkpoint, class_folders, tmp_path):
    names = [f"thing {i}" for i in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    status, _, err = recal(
        "export", split_checkpoint, "--variant", "aux0", "-o", "model.onnx", "--uint8", "--softmax",
        "--class-names", "names.txt",
    )  # fmt: skip
    assert status == 0, err
    (code,) = re.findall(r"```python\n(.*?)```", TEXT.partition("## Run it")[2], re.S)
    scope = {}
    exec(code, scope)
    pictures = sorted((class_folders / "test" / "class1").iterdir())
    found = scope["classify"](pictures)
    checkpoint = load_checkpoint(split_checkpoint)
    spec = checkpoint.spec
    pixels = np.stack([np.asarray(Image.open(path)) for path in pictures])
    with torch.no_grad():
        images = torch.from_numpy(normalise_array(pixels, spec.normalisation))
        expected = build(checkpoint, "aux0")(images).softmax(1).numpy()
    assert [name for name, _ in found] == [names[i] for i in expected.argmax(1)]
    np.testing.assert_allclose([p for _, p in found], expected.max(1), atol=1e-5)


def test_every_option_of_export_that_is_listed_exists():
    listed = set(re.findall(r"`(--[a-z0-9-]+)", TEXT.split("## Proof")[0]))
    assert len(listed) >= 8
    assert listed <= options_of("export")
