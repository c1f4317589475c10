"""docs/data.md says what the ops and policies are."""

import re
import shlex
import shutil
import typing
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from PIL import Image

from recal.onnx_file.record import read_record
from recal.policies.families import family_names
from recal.policies.ops import AnyOp
from recal.policies.policy import policy_names, read_policy
from recal.schema import describe
from recal.variant.variant import load_variant

PAGE = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")


OPS_TABLE = PAGE.index("| op |")


def row(name, page):
    (found,) = re.findall(rf"^\| `{name}` \|.*$", page, re.MULTILINE)
    return found


@pytest.mark.parametrize("op", typing.get_args(AnyOp))
def test_every_op_and_its_arguments_are_documented(op):
    arguments = row(op.__struct_config__.tag, PAGE[OPS_TABLE:]).split("|")[3].strip().split("; ")
    expected = []
    for field in msgspec.structs.fields(op):
        shown = (
            f"{field.default:g}" if isinstance(field.default, float) else str(field.default).lower()
        )
        default = "" if field.required else f" [{shown}]"
        expected.append(f"`{field.name}` {describe(field.type)}{default}")
    assert arguments == (expected or [""])


def test_every_policy_is_documented():
    for family in family_names():
        for name in policy_names(family):
            assert row(name, PAGE[:OPS_TABLE])


def test_the_commands_of_the_camera_run_in_order(recal, split_checkpoint, tmp_path):
    """Images of the camera are larger than the network's input."""
    story = PAGE[: PAGE.index("## Preparation")]
    commands = re.findall(r"^    recal (.*)$", story, re.MULTILINE)
    assert [line.split()[0] for line in commands] == [
        "calibrate", "export", "predict", "eval",
        "policies", "calibrate", "eval", "export", "predict",
    ]  # fmt: skip
    shutil.copy(split_checkpoint, tmp_path / "model.pth")
    (policy,) = re.findall(r"```toml\n(.*?)```", story, re.DOTALL)
    (tmp_path / "photo.toml").write_text(policy, encoding="utf-8")
    rng = np.random.default_rng(0)
    (tmp_path / "camera").mkdir()
    for number in range(20):
        picture = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        picture.save(tmp_path / "camera" / f"{number}.png")
        folder = tmp_path / "camera-labelled" / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{number}.png")
    for command in commands:
        status, _, err = recal(*shlex.split(command))
        assert status == 0, f"{command}: {err}"
    for name, text in (("camera", ""), ("photo", policy)):
        spec = load_variant(tmp_path / f"{name}.safetensors").spec
        record = read_record(onnx.load(tmp_path / f"{name}.onnx"), name)
        assert record.model == spec
        assert (spec.crop_mode, spec.policy) == ("none" if text else "center", text)


def test_every_policy_that_the_page_shows_can_be_read(tmp_path):
    shown = [t for t in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL) if "summary = " in t]
    assert len(shown) == 3
    for name in ("weak", "strong"):
        (tmp_path / f"{name}.toml").write_text("summary = ''", encoding="utf-8")
    for number, text in enumerate(shown):
        (tmp_path / f"{number}.toml").write_text(text, encoding="utf-8")
        policy = read_policy(tmp_path / f"{number}.toml")
        assert policy.ops or policy.parts
