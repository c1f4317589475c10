"""README.md: its Python runs as it stands, top to bottom."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import recal as package
from recal.corruptions import CORRUPTIONS

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_python_runs(split_checkpoint, class_folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(split_checkpoint, "wrn16_1_splitbn.pth")
    shutil.copytree(class_folders, "cifar10")
    # frost needs textures that are not shipped
    (tmp_path / "data" / "frost").mkdir(parents=True)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    module = package.build(package.load_checkpoint("wrn16_1_splitbn.pth"), "aux0")
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pairs = torch.utils.data.TensorDataset(images, torch.arange(20) % 10)
    scope = {"module": module, "loader": torch.utils.data.DataLoader(pairs, 10)}
    exec(code, scope)
    assert package.load_variant("weak.safetensors").sha256 == scope["variant"].sha256
    assert [row.target for row in scope["run"].summary.targets] == [
        "wrn16_1_splitbn.pth", "main, weak statistics",
    ]  # fmt: skip
    assert (tmp_path / "model.onnx").is_file()
    assert 0 <= scope["metrics"].ece <= 1
    found = scope["pairs"][0].differences
    assert len(set(found) & {f"{name}_accuracy" for name in CORRUPTIONS}) == 14
    assert scope["best"] in {"wrn16_1_splitbn.pth", "main, weak statistics"}
