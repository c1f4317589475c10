"""Hostile and damaged files: one clear error, no code run, little memory, no time."""

import builtins
import cProfile
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from recal.checkpoint.checkpoint import load_checkpoint
from recal.checkpoint.walk import Walk
from recal.errors import InputError
from recal.networks.spec import ModelOverrides
from tests.dual_networks import NORMS, Network, randomise
from tests.fuzzed_checkpoints import CASES, damaged, read_seeds, run
from tests.limited import run_limited

# prints the error that reading a file ends in
READ = """
import sys
from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import InputError
try:
    load_checkpoint(sys.argv[1])
except InputError as error:
    print(error)
"""


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def state():
    return randomise(Network(NORMS["mixbn"])).state_dict()


def rewrite(source, target, change, *, compression=zipfile.ZIP_STORED, name="data.pkl"):
    """Copy a checkpoint's archive with one entry's content changed and its checksum right."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith(f"/{name}"):
                content = change(content)
            new.writestr(entry.filename, content)
    return target


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (os.system, "posix.system"),
        (builtins.exec, "builtins.exec"),
        (builtins.eval, "builtins.eval"),
        (builtins.getattr, "builtins.getattr"),
        (subprocess.Popen, "subprocess.Popen"),
        (torch.load, "torch.serialization.load"),
        (torch.hub.load, "torch.hub.load"),
        (bytearray, "builtins.bytearray"),
        (nn.Linear, "torch.nn.modules.linear.Linear"),
    ],
)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle0", "pickle2", "pickle4"])
def test_file_that_wants_a_global_is_refused_by_its_name_and_nothing_runs(
    function, named, form, state, tmp_path
):
    canary = tmp_path / "ran"
    payload = {**state, "extra": Calls(function, f"touch {canary}")}
    path = tmp_path / "f.pth"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(payload["extra"], protocol=int(form[-1])))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError, match=f"would call {named}; nothing was run"):
        load_checkpoint(path)
    assert not canary.exists()


def test_whole_network_saved_as_an_object_is_refused_by_its_class(tmp_path):
    torch.save(Network(nn.BatchNorm2d), tmp_path / "f.pth")
    with pytest.raises(InputError, match=r"would call tests\.dual_networks\.Network.*state_dict"):
        load_checkpoint(tmp_path / "f.pth")


def test_harmless_types_are_never_built_as_themselves(state, tmp_path, monkeypatch):
    """A Namespace is read as an inert record, whatever its class would do."""
    import argparse

    path = tmp_path / "f.pth"
    torch.save({"state_dict": state, "args": argparse.Namespace(model="wrn16_1")}, path)
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda *_: pytest.fail("it was built"))
    monkeypatch.setattr(argparse.Namespace, "__setstate__", lambda *_: pytest.fail("built"),
                        raising=False)  # fmt: skip
    assert load_checkpoint(path).facts == ModelOverrides(arch="wrn16_1")


def test_truncated_files_are_refused_at_every_length(state, tmp_path):
    torch.save(state, tmp_path / "f.pth")
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "f.safetensors")
    for whole in (tmp_path / "f.pth", tmp_path / "f.safetensors"):
        content = whole.read_bytes()
        for share in (0.0, 0.01, 0.1, 0.5, 0.9, 0.999):
            cut = tmp_path / "cut"
            cut.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(InputError):
                load_checkpoint(cut)


def test_bit_flip_in_a_tensor_is_found_by_the_checksum(state, tmp_path):
    torch.save(state, tmp_path / "f.pth")
    with zipfile.ZipFile(tmp_path / "f.pth") as archive:
        entry = next(e for e in archive.infolist() if "/data/" in e.filename and e.file_size > 50)
    content = bytearray((tmp_path / "f.pth").read_bytes())
    content[entry.header_offset + 30 + len(entry.filename) + 80] ^= 0x10
    (tmp_path / "f.pth").write_bytes(content)
    with pytest.raises(InputError, match="damaged one"):
        load_checkpoint(tmp_path / "f.pth")


def test_zip_bomb_is_refused_before_it_unpacks(state, tmp_path, monkeypatch):
    torch.save(state, tmp_path / "f.pth")
    bomb = rewrite(tmp_path / "f.pth", tmp_path / "bomb.pth", lambda c: c + b"\0" * 100_000_000,
                   compression=zipfile.ZIP_DEFLATED)  # fmt: skip
    assert bomb.stat().st_size < 250_000
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: pytest.fail("it is unpacked"))
    with pytest.raises(InputError, match="compressed entries"):
        load_checkpoint(bomb)


def test_entries_that_overlap_are_refused(state, tmp_path):
    """As in a bomb whose entries all point to the same bytes."""
    torch.save(state, tmp_path / "f.pth")
    content = (tmp_path / "f.pth").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        start, count = archive.start_dir, len(archive.infolist())
    directory = content[start : content.rindex(b"PK\x05\x06")]
    at = directory.index(largest.filename.encode()) - 46
    size = 46 + sum(struct.unpack_from("<HHH", directory, at + 28))
    copies = b"".join(
        directory[at : at + size].replace(largest.filename.encode(), name.encode())
        for name in (largest.filename[:-3] + f"{i:03d}" for i in range(500))
        if len(name) == len(largest.filename)
    )
    total = directory + copies
    number = count + len(copies) // size
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, number, number, len(total), start, 0)
    (tmp_path / "f.pth").write_bytes(content[:start] + total + end)
    with pytest.raises(InputError, match=r"overlap|two entries|damaged"):
        load_checkpoint(tmp_path / "f.pth")


@pytest.mark.parametrize("count", [10**4, 10**9, 10**12, 2**31 - 1])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_storage_that_claims_to_be_longer_than_it_is_is_refused(count, form, tmp_path):
    """PyTorch would read beyond the end of what it has loaded, or allocate what it is told to."""
    layer = {"bn.running_mean": torch.zeros(61), "bn.running_var": torch.ones(61)}
    torch.save(layer, tmp_path / "f.pth", _use_new_zipfile_serialization=form == "zip")
    longer = pickle.dumps(count, protocol=2)[2:-1]  # without PROTO and STOP

    def change(content):
        assert content.count(b"K\x3d") >= 2  # BININT1 61
        return content.replace(b"K\x3d", longer)

    if form == "zip":
        path = rewrite(tmp_path / "f.pth", tmp_path / "long.pth", change)
    else:
        path = tmp_path / "long.pth"
        path.write_bytes(change((tmp_path / "f.pth").read_bytes()))
    with pytest.raises(InputError, match=r"expected .* bytes (for storage|of storages)"):
        load_checkpoint(path)


def test_shape_larger_than_its_storage_is_refused(tmp_path):
    """A stride of zero makes a terabyte out of one number."""
    huge = torch.zeros(1).expand(10**12)
    torch.save({"bn.running_mean": huge, "bn.running_var": huge}, tmp_path / "f.pth")
    with pytest.raises(InputError, match="larger than what the file stores"):
        load_checkpoint(tmp_path / "f.pth")


def test_many_views_of_one_storage_are_refused(tmp_path):
    base = torch.zeros(100_000)
    state = {f"bn{i}.running_{leaf}": base[i:] for i in range(40) for leaf in ("mean", "var")}
    torch.save(state, tmp_path / "f.pth")
    with pytest.raises(InputError, match="larger than what the file stores"):
        load_checkpoint(tmp_path / "f.pth")


@pytest.mark.parametrize(
    "tensor",
    [
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
        lambda: torch.empty(3, device="meta"),
    ],
    ids=["sparse", "quantised", "meta"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_tensors_that_are_no_dense_weights_are_refused(tensor, state, tmp_path):
    torch.save({**state, "fc.weight": tensor()}, tmp_path / "f.pth")
    with pytest.raises(InputError, match="expected a dense tensor"):
        load_checkpoint(tmp_path / "f.pth")


@pytest.mark.slow
def test_tuples_nested_beyond_reason_end_at_once(state, tmp_path):
    """A tuple of itself twice, sixty times over, hashes for ever as a dictionary's key."""
    torch.save({"a": 1}, tmp_path / "f.pth")
    nested = b"\x80\x02}(" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01u."
    path = rewrite(tmp_path / "f.pth", tmp_path / "nested.pth", lambda _: nested)
    assert "nested beyond reason" in run_limited("-c", READ, path)


def test_text_that_would_be_recoded_is_refused():
    with pytest.raises(ValueError, match="encoding"):
        Walk().run(io.BytesIO(pickle.dumps(b"x" * 300, protocol=2).replace(b"latin1", b"idna22")))


def test_pickle_of_a_newer_protocol_says_how_to_save_again(state, tmp_path):
    torch.save(state, tmp_path / "f.pth", pickle_protocol=4)
    with pytest.raises(InputError, match=r"torch.save's defaults"):
        load_checkpoint(tmp_path / "f.pth")


def test_string_that_claims_to_be_longer_than_the_file_is_refused(tmp_path):
    """A buffered file makes room for what it is asked for before it finds the end."""
    for opcode in (b"\x8d", b"\x8e", b"\x96"):  # BINUNICODE8, BINBYTES8, BYTEARRAY8
        (tmp_path / "f").write_bytes(b"\x80\x04" + opcode + struct.pack("<Q", 2**40) + b"a.")
        with pytest.raises(InputError, match="longer than the file"):
            load_checkpoint(tmp_path / "f")


def test_big_endian_file_with_its_record_is_read_as_it_was(state, tmp_path):
    torch.save(state, tmp_path / "f.pth")
    swapped = tmp_path / "big.pth"
    with (
        zipfile.ZipFile(tmp_path / "f.pth") as old,
        zipfile.ZipFile(swapped, "w") as new,
    ):
        sizes = {t.untyped_storage()._cdata: t.element_size() for t in state.values()}
        assert set(sizes.values()) == {4, 8}
        counters = [f"data/{i}" for i, (k, v) in enumerate(state.items()) if v.element_size() == 8]
        for entry in old.infolist():
            content = old.read(entry)
            inner = entry.filename.partition("/")[2]
            if inner == "byteorder":
                content = b"big"
            elif inner.startswith("data/"):
                size = 8 if inner in counters else 4
                content = b"".join(
                    content[i : i + size][::-1] for i in range(0, len(content), size)
                )
            new.writestr(entry.filename, content)
    ours, theirs = load_checkpoint(swapped), load_checkpoint(tmp_path / "f.pth")
    assert ours.weights_sha256 == theirs.weights_sha256


@pytest.mark.parametrize("order", [b"big", b"middle"])
def test_file_with_the_wrong_byte_order_is_refused(order, state, tmp_path):
    torch.save(state, tmp_path / "f.pth")
    path = rewrite(tmp_path / "f.pth", tmp_path / "w.pth", lambda _: order, name="byteorder")
    with pytest.raises(InputError, match=r"byte order|endianness"):
        load_checkpoint(path)


def test_absurd_safetensors_headers_are_refused(tmp_path):
    entry = '{"a.running_mean":{"dtype":"F32","shape":%s,"data_offsets":[0,%d]}}'
    for shape, end in (("[1000000000000]", 4), ("[-1]", 4), ("[18446744073709551615,2]", 8)):
        header = (entry % (shape, end)).encode()
        (tmp_path / "f").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
        with pytest.raises(InputError, match="expected a whole safetensors file"):
            load_checkpoint(tmp_path / "f")
    (tmp_path / "f").write_bytes(struct.pack("<Q", 2**62) + b"{" + b" " * 100)
    with pytest.raises(InputError, match="expected a whole safetensors file"):
        load_checkpoint(tmp_path / "f")


def test_tensor_with_an_absurd_name_is_refused(state, tmp_path):
    torch.save({**state, "a" * 100_000: torch.ones(1)}, tmp_path / "f.pth")
    with pytest.raises(InputError, match="expected the name of a layer's tensor"):
        load_checkpoint(tmp_path / "f.pth")


# a network that fits is built first, whose imports and tables are no cost of the other
BUILD = """
import sys
import timm
from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import InputError
from recal.variant.build import build
from tests.limited import most_memory

build(load_checkpoint(sys.argv[1]))
checkpoint = load_checkpoint(sys.argv[2])
before = most_memory()
try:
    build(checkpoint)
except InputError as error:
    assert "do not fit" in str(error), error
    print(most_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["wrn400_64", "cifar_resnet1202", "timm:resnetv2_152x4_bit"])
def test_network_of_any_size_that_a_file_names_costs_no_memory(arch, split_checkpoint, tmp_path):
    state = torch.load(split_checkpoint, weights_only=True)["state_dict"]
    torch.save({"arch": arch, "classes": 10**6, "state_dict": state}, tmp_path / "f.pth")
    grown = int(run_limited("-c", BUILD, split_checkpoint, tmp_path / "f.pth"))
    assert grown < 200_000_000


@pytest.mark.slow
def test_work_grows_with_the_number_of_layers_and_no_faster(tmp_path):
    tensor = torch.ones(1)

    def calls(layers):
        """Return how many functions are called to read so many layers."""
        state = {f"l{i}.bn.{j}.running_{leaf}": tensor
                 for i in range(layers) for j in range(2) for leaf in ("mean", "var")}  # fmt: skip
        torch.save(state, tmp_path / "f.pth")
        profile = cProfile.Profile()
        read = profile.runcall(load_checkpoint, tmp_path / "f.pth")
        assert len(read.layers) == layers
        return sum(entry.callcount for entry in profile.getstats())

    assert calls(4_000) < 8.5 * calls(500)


def test_a_damaged_file_is_the_same_bytes_on_every_run():
    digest = hashlib.sha256()
    seeds = read_seeds()
    for case in range(200):
        digest.update(damaged(case, seeds))
    assert digest.hexdigest() == "713b7f21a99d13a96090a4da306ff86566549a91931c94d4b21e5eec34fa5e9a"


def test_damaged_files_run_no_code(tmp_path, monkeypatch):
    """A part of the cases, each of which ends in a checkpoint or one clear error."""
    monkeypatch.chdir(tmp_path)
    ran = []
    execute = builtins.exec

    def run_compiled(code, *args, **kwargs):
        """Run code objects, as every import does, and note source text."""
        if isinstance(code, str):
            ran.append("exec")
        else:
            execute(code, *args, **kwargs)

    monkeypatch.setattr(builtins, "exec", run_compiled)
    for module, name in ((os, "system"), (subprocess, "Popen")):
        monkeypatch.setattr(module, name, lambda *_a, what=name, **_k: ran.append(what))
    run(range(0, CASES, 8), tmp_path)
    assert not ran
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_damaged_files_give_a_checkpoint_or_one_clear_error():
    """No crash, no hang, no code run, no memory: 2,400 damaged files of every format.

    `python -m tests.fuzzed_checkpoints NUMBER` says what becomes of one of them.
    """
    found = json.loads(run_limited("-m", "tests.fuzzed_checkpoints", 0, CASES))
    assert not found["ran"]
    assert found["grown"] < 300_000_000
    # the cases are worth something: some still load, some get past the first look
    assert found["read"] > CASES / 50
    assert found["refused"] > CASES / 2
    assert found["reached"] > 10
    assert found["read"] + found["refused"] == CASES
