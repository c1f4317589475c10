"""Damaged checkpoints, the same bytes on every run, each made from its number.

    python -m tests.fuzzed_checkpoints 1234        # what becomes of one case
    python -m tests.fuzzed_checkpoints 0 2400      # of all of them, with what they cost

The files that are damaged are in `fuzz_seeds.zip`: small checkpoints of every format and wrapper,
one of which carries code. `python -m tests.fuzzed_checkpoints seeds` writes them anew, which
changes every case: PyTorch's older format holds addresses of memory.
"""

import io
import json
import os
import random
import struct
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.limited import most_memory

CASES = 2_400
SEEDS = Path(__file__).with_name("fuzz_seeds.zip")
EPOCH = (1980, 1, 1, 0, 0, 0)
CODE = "touch ran"


def read_seeds():
    """Return the whole files, in their order."""
    with zipfile.ZipFile(SEEDS) as archive:
        return [archive.read(name) for name in sorted(archive.namelist())]


def damaged(case, seeds):
    """Return the bytes of a case."""
    rng, original = random.Random(case), seeds[case % len(seeds)]
    inside = zipfile.is_zipfile(io.BytesIO(original)) and case % 3 != 0
    return (mutate_inside if inside else mutate)(original, rng)


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
    return zipped(entries)


def zipped(entries):
    """Return an archive of entries by name, without the time of day."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
    return buffer.getvalue()


def outcome(path):
    """Read a file; return the message of the error that it ends in, or nothing.

    Raises:
        AssertionError: The message is not one line of a bounded length that names the file.
    """
    from recal.checkpoint.checkpoint import Checkpoint, load_checkpoint
    from recal.errors import LONGEST, RecalError

    try:
        assert isinstance(load_checkpoint(path), Checkpoint)
    except RecalError as error:
        message = str(error)
        assert message.isprintable()
        assert 0 < len(message) <= LONGEST
        assert message.startswith((str(path), "--", "norm"))
        return message
    return ""


def run(cases, folder):
    """Try cases; return how many files are read, are refused, and get as far as torch.load.

    Raises:
        AssertionError: A case does not end in a checkpoint or one clear error; it is named.
    """
    seeds, path = read_seeds(), folder / "case"
    counts = {"read": 0, "refused": 0, "reached": 0}
    for case in cases:
        path.write_bytes(damaged(case, seeds))
        try:
            message = outcome(path)
        except BaseException as error:
            error.add_note(f"case={case}; python -m tests.fuzzed_checkpoints {case}")
            raise
        counts["refused" if message else "read"] += 1
        counts["reached"] += "torch.load refuses" in message
    return counts


def write_seeds():
    """Write the files that are damaged."""
    import torch
    from safetensors.torch import save_file

    from tests.dual_networks import NORMS, Network, randomise

    class Calls:
        def __reduce__(self):
            return os.system, (CODE,)

    state = randomise(Network(NORMS["acl"])).state_dict()
    small = {k: v for k, v in state.items() if not k.startswith("body")}
    dubin = randomise(Network(NORMS["dubin"])).state_dict()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        torch.save(small, folder / "a")
        torch.save({"state_dict": small, "arch": "wrn16_1", "epoch": 1}, folder / "b",
                   _use_new_zipfile_serialization=False)  # fmt: skip
        save_file({k: v.clone() for k, v in small.items()}, folder / "c")
        torch.save({"model": {f"module.{k}": v for k, v in dubin.items()}}, folder / "d")
        torch.save({**small, "x": Calls()}, folder / "e")
        SEEDS.write_bytes(zipped({name: (folder / name).read_bytes() for name in "abcde"}))


def main():
    """Try the cases of the command line; print what became of them."""
    if sys.argv[1:] == ["seeds"]:
        write_seeds()
        return
    first, last = int(sys.argv[1]), int(sys.argv[-1]) + (len(sys.argv) == 2)
    with tempfile.TemporaryDirectory() as made:
        os.chdir(made)  # where code that ran would leave its trace
        folder = Path(made)
        if last == first + 1:
            (folder / "case").write_bytes(damaged(first, read_seeds()))
            print(outcome(folder / "case") or "read")
            return
        run(range(first, first + 5), folder)  # imports and tables are no cost of the cases
        before = most_memory()
        counts = run(range(first, last), folder)
        grown = most_memory() - before
        ran = (folder / "ran").exists()
        print(json.dumps({**counts, "grown": grown, "ran": ran}))


if __name__ == "__main__":
    main()
