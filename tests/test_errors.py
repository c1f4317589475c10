"""Errors and warnings quote text from outside shortened, on one line and without escapes."""

import json
import os
import zipfile

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recal import load_checkpoint
from recal.cli.console import warn
from recal.errors import LONGEST, LONGEST_REASON, InputError, printable, reason

ESCAPES = "\x1b[2J\x1b]0;title\x07\r\n\u202e\u2028\udc80"
SPELLED = r"\x1b[2J\x1b]0;title\x07\r\n\u202e\u2028\udc80"


@given(st.text(st.characters(codec=None), max_size=3 * LONGEST))
def test_any_text_becomes_one_bounded_printable_line_and_stays_as_it_then_is(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= LONGEST
    assert printable(shown) == shown
    shown.encode()  # no lone surrogate is left


@given(st.text(max_size=LONGEST).filter(str.isprintable))
def test_plain_text_is_not_changed(text):
    assert printable(text) == text


def test_escapes_are_spelled_and_place_and_advice_stay():
    error = InputError(f"a.pth: expected weights, got {ESCAPES}{'x' * 10**6}. Copy it again.")
    assert str(error).startswith(f"a.pth: expected weights, got {SPELLED}xxx")
    assert str(error).endswith("xxx. Copy it again.")
    assert " [...] " in str(error)
    assert len(str(error)) == LONGEST


def test_reason_is_the_first_line_or_the_type_of_what_says_nothing():
    assert reason(ValueError("  shapes differ.\nIn detail: ...")) == "shapes differ"
    assert reason(KeyError()) == "KeyError"
    assert reason(ValueError("\n")) == "ValueError"
    assert len(reason(ValueError("x" * 10_000))) == LONGEST_REASON


def test_an_error_survives_another_process():
    import pickle

    error = pickle.loads(pickle.dumps(InputError(f"a: {ESCAPES}")))
    assert type(error) is InputError
    assert str(error) == f"a: {SPELLED}"


def test_what_zipfile_says_of_a_hostile_name_is_shortened(tmp_path):
    """Zipfile quotes both names of an entry whose two headers disagree, 16,000 characters here."""
    path = tmp_path / "f.pth"
    torch.save({"bn.running_mean": torch.zeros(3)}, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
    long = b"\0" * 16_000
    # the length of the name in the first local header, and a name of that length
    at = first.header_offset
    header = content[at : at + 26] + len(long).to_bytes(2, "little") + content[at + 28 : at + 30]
    path.write_bytes(content[:at] + header + long + content[at + 30 :])
    with pytest.raises(
        InputError, match=r"f\.pth: .*damaged.* Copy or download it again\.$"
    ) as error:
        load_checkpoint(path)
    assert len(str(error.value)) <= LONGEST


@pytest.fixture
def shown(recal):
    """Run the command, which has to fail with status 3; return its one line of error."""

    def run(*arguments):
        status, _, err = recal(*arguments)
        assert status == 3, err
        assert err.startswith("recal: ")
        assert err[:-1].isprintable()
        assert err[-1] == "\n"
        return err

    return run


@pytest.mark.parametrize("name", [f"bn{ESCAPES}.running_mean", "\x1b" * 100_000, "\n"])
def test_names_of_tensors_reach_no_terminal_as_they_are(name, shown, tmp_path):
    torch.save({name: torch.zeros(3), "bn.running_var": torch.ones(3)}, tmp_path / "f.pth")
    assert "printable characters" in shown("inspect", tmp_path / "f.pth")


def test_names_of_files_reach_no_terminal_as_they_are(shown, tmp_path):
    name = os.fsdecode(b"a\x1b[31m\n\x80.pth")
    (tmp_path / name).write_bytes(b"no checkpoint")
    assert r"a\x1b[31m\n\udc80.pth: expected a checkpoint" in shown("inspect", tmp_path / name)


def test_arguments_that_click_quotes_reach_no_terminal_as_they_are(recal):
    status, _, err = recal("inspect", "a", "--plot\x1b[31m" + "x" * 10_000)
    assert status == 2
    assert "Error: No such option" in err
    assert all(line.isprintable() and len(line) <= LONGEST for line in err.splitlines())


def test_metadata_of_an_onnx_file_reach_no_terminal_as_they_are(shown, tmp_path):
    node = onnx.helper.make_node("Identity", ["input"], ["logits"])
    ports = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 3, 32, 32])
        for name in ("input", "logits")
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ports[:1], ports[1:]))
    hostile = json.dumps("\x1b[2J" + "x" * 10_000)
    for key in ("format", "model", "variant", "options", "weights_sha256", "branches"):
        model.metadata_props.add(key=f"recal.{key}", value=hostile)
    onnx.save(model, tmp_path / "m.onnx")
    assert len(shown("verify", tmp_path / "m.onnx")) < 2 * LONGEST


def test_warnings_are_one_printable_line_on_standard_error(capsys):
    warn([f"a{ESCAPES}.png{'x' * 10_000}: cannot be decoded."], kind="failed")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(rf"failed: a{SPELLED}.pngxxx")
    assert captured.err.endswith("xxx: cannot be decoded.\n")
    assert captured.err[:-1].isprintable()
