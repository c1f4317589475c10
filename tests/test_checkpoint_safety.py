"""Hostile and damaged files: one clear error, no code run, little memory, no time."""

import builtins
import io
import os
import pickle
import random
import resource
import struct
import subprocess
import time
import zipfile

import dual_networks
import pytest
import torch
from dual_networks import NORMS, Network, randomise
from safetensors.torch import save_file
from torch import nn

from recal.checkpoint.checkpoint import Checkpoint, load_checkpoint
from recal.checkpoint.safety import Walk
from recal.errors import InputError, RecalError

CASES = 2_400
SECONDS = 5.0


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
    with pytest.raises(InputError, match=r"would call dual_networks\.Network.*state_dict"):
        load_checkpoint(tmp_path / "f.pth")


def test_harmless_types_are_never_built_as_themselves(state, tmp_path, monkeypatch):
    """A Namespace is read as an inert record, whatever its class would do."""
    import argparse

    path = tmp_path / "f.pth"
    torch.save({"state_dict": state, "args": argparse.Namespace(model="wrn16_1")}, path)
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda *_: pytest.fail("it was built"))
    monkeypatch.setattr(argparse.Namespace, "__setstate__", lambda *_: pytest.fail("built"),
                        raising=False)  # fmt: skip
    assert load_checkpoint(path).facts == {"arch": "wrn16_1"}


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


def test_zip_bomb_is_refused_before_it_unpacks(state, tmp_path):
    torch.save(state, tmp_path / "f.pth")
    bomb = rewrite(tmp_path / "f.pth", tmp_path / "bomb.pth", lambda c: c + b"\0" * 400_000_000,
                   compression=zipfile.ZIP_DEFLATED)  # fmt: skip
    assert bomb.stat().st_size < 1_000_000
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(InputError, match="compressed entries"):
        load_checkpoint(bomb)
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


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
    with pytest.raises(InputError, match="would call torch"):
        load_checkpoint(tmp_path / "f.pth")


def test_tuples_nested_beyond_reason_end_at_once(state, tmp_path):
    """A tuple of itself twice, sixty times over, hashes for ever as a dictionary's key."""
    torch.save({"a": 1}, tmp_path / "f.pth")
    nested = b"\x80\x02}(" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01u."
    path = rewrite(tmp_path / "f.pth", tmp_path / "nested.pth", lambda _: nested)
    start = time.perf_counter()
    with pytest.raises(InputError, match="nested beyond reason"):
        load_checkpoint(path)
    assert time.perf_counter() - start < 1


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
    with pytest.raises(InputError, match="no layer's"):
        load_checkpoint(tmp_path / "f.pth")


@pytest.mark.parametrize("arch", ["wrn400_64", "cifar_resnet1202", "timm:resnetv2_152x4_bit"])
def test_network_of_any_size_that_a_file_names_costs_no_memory(arch, split_checkpoint, tmp_path):
    from recal.networks.build import build

    state = torch.load(split_checkpoint, weights_only=True)["state_dict"]
    torch.save({"arch": arch, "classes": 10**6, "state_dict": state}, tmp_path / "f.pth")
    checkpoint = load_checkpoint(tmp_path / "f.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="do not fit"):
        build(checkpoint)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_many_layers_take_seconds_at_most(tmp_path):
    tensor = torch.ones(1)
    state = {f"l{i}.bn.{j}.running_{leaf}": tensor
             for i in range(8_000) for j in range(2) for leaf in ("mean", "var")}  # fmt: skip
    torch.save(state, tmp_path / "f.pth")
    start = time.perf_counter()
    assert len(load_checkpoint(tmp_path / "f.pth").layers) == 8_000
    assert time.perf_counter() - start < 10


def seeds(folder):
    """Small files of every format and wrapper, one of which carries code."""
    state = randomise(Network(NORMS["acl"])).state_dict()
    small = {k: v for k, v in state.items() if not k.startswith("body")}
    torch.save(small, folder / "a")
    torch.save({"state_dict": small, "arch": "wrn16_1", "epoch": 1}, folder / "b",
               _use_new_zipfile_serialization=False)  # fmt: skip
    save_file({k: v.clone() for k, v in small.items()}, folder / "c")
    dubin = dual_networks.randomise(Network(NORMS["dubin"])).state_dict()
    torch.save({"model": {f"module.{k}": v for k, v in dubin.items()}}, folder / "d")
    torch.save({**small, "x": Calls(os.system, f"touch {folder / 'ran'}")}, folder / "e")
    return [(folder / name).read_bytes() for name in "abcde"]


def mutate(content, rng):
    """Damage a file as disks, networks and people who mean harm do."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, ord("."), ord("R"), ord("c")))
        elif kind == 2:
            del data[at : at + rng.choice((1, 4, 100, 10_000))]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 50)))
        elif kind == 4:
            piece = data[at : at + rng.choice((4, 40, 400))]
            to = rng.randrange(len(data)) if data else 0
            data[to : to + len(piece)] = piece
        elif kind == 5:
            data[at : at + 8] = struct.pack("<Q", rng.choice((0, 2**31, 2**40, 2**63, 2**64 - 1)))
        elif kind == 6:
            data = data[:at] if rng.random() < 0.3 else data
        else:
            data[at : at + 2] = rng.choice((b"K\xff", b"\x8a\x08", b"}q", b"(t", b"PK", b"\x93."))
    return bytes(data)


def mutate_inside(content, rng):
    """Damage one entry of an archive and make its checksum right, so that it reaches the reader."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    target = pickled if rng.random() < 0.8 else rng.choice(list(entries))
    entries[target] = mutate(entries[target], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_fuzzed_files_give_a_checkpoint_or_one_clear_error(tmp_path, monkeypatch):
    """No crash, no hang, no code run, no memory: at least 2,000 damaged files of every format."""
    rng = random.Random(20)
    originals = seeds(tmp_path)
    ran = []
    for module, name in ((os, "system"), (builtins, "exec"), (subprocess, "Popen")):
        monkeypatch.setattr(module, name, lambda *_a, what=name, **_k: ran.append(what))
    path, read, refused, slowest = tmp_path / "case", 0, 0, 0.0
    reached = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(CASES):
        original = originals[case % len(originals)]
        inside = zipfile.is_zipfile(io.BytesIO(original)) and case % 3 != 0
        content = (mutate_inside if inside else mutate)(original, rng)
        path.write_bytes(content)
        start = time.perf_counter()
        message = ""
        try:
            assert isinstance(load_checkpoint(path), Checkpoint)
            read += 1
        except RecalError as error:
            message = str(error)
            refused += 1
        reached += "torch.load refuses" in message
        assert len(message) < 2_000
        assert not message or message.startswith((str(path), "--", "norm"))
        slowest = max(slowest, time.perf_counter() - start)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert not ran
    assert not (tmp_path / "ran").exists()
    assert slowest < SECONDS
    assert grown < 300_000  # kB
    # the cases are worth something: some still load, some get past the first look
    assert read > CASES / 50
    assert refused > CASES / 2
    assert reached > 10
