"""Evaluation over suites: which images, which cells, what is kept and what is computed again."""

import json
import weakref

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from recal import build, calibrate, evaluate, export_onnx, load_checkpoint
from recal.checkpoint.layouts import AS_FOUND
from recal.data.sampling import stratified_sample
from recal.errors import InputError, RecalError, UsageError
from recal.files import locked
from recal.runs.store import cell_file, read_cell, read_target_cell, write_cell
from recal.runs.summary import read_summary
from recal.suites.locate import open_suite_images
from recal.suites.suite import Cell, load_suite
from recal.variant.variant import save_variant
from tests.saved_runs import MODEL

PART = {"corruptions": ["contrast", "pixelate"], "severities": [2, 5]}


@pytest.fixture
def published(tmp_path):
    """CIFAR-10-C's layout with 4 images a severity, for a suite declared so."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    suite = load_suite("cifar10c")
    corrupted = replace(suite.corrupted, rows=4, corruptions=("contrast", "pixelate"))
    suite = replace(suite, corrupted=corrupted)
    for name in suite.corrupted.corruptions:
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile([3, 1, 4, 1], 5).astype(np.uint8))
    return suite, folder


def test_module_in_memory_is_evaluated_and_keeps_its_mode(split_checkpoint):
    network = build(load_checkpoint(split_checkpoint)).train()
    images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = network.eval()(images).argmax(1)
    network.train()
    labels[:5] = (labels[:5] + 1) % 10
    found = evaluate(network, zip(images.split(8), labels.split(8), strict=True))
    assert found.accuracy == 0.75
    assert network.training


def test_cells_hold_what_the_network_says_of_each_image(split_checkpoint, class_folders, tmp_path):
    from recal.corruptions import corrupt
    from recal.data.folders import open_images
    from recal.data.normalise import normalise

    run = evaluate(
        [str(split_checkpoint)], suite="cifar10c", data=class_folders, output=tmp_path / "run",
        batch_size=7, **PART,
    )  # fmt: skip
    source = open_images(class_folders, "test")
    clean = np.stack([source[i] for i in range(40)])
    checkpoint = load_checkpoint(split_checkpoint)
    network, spec = build(checkpoint), checkpoint.spec
    pictures = {"clean": clean, "contrast-5": corrupt(clean, "contrast", 5, family="cifar")}
    for name, pixels in pictures.items():
        cell = read_target_cell(run.folder, str(split_checkpoint), name)
        batch = normalise(torch.from_numpy(pixels), spec.normalisation, torch.device("cpu"))
        with torch.no_grad():
            p = torch.softmax(network(batch).double(), 1)
        assert cell["index"].tolist() == list(range(40))
        assert cell["label"].tolist() == source.labels.tolist()
        assert cell["prediction"].tolist() == p.argmax(1).tolist()
        truth = -p[range(40), torch.from_numpy(source.labels)].log()
        np.testing.assert_allclose(cell["nll"], truth, rtol=1e-4)
    names = [(c.corruption, c.severity) for c in run.summary.cells]
    assert names == [
        (None, None), ("contrast", 2), ("contrast", 5), ("pixelate", 2), ("pixelate", 5),
    ]  # fmt: skip
    row = run.summary.targets[0]
    assert row.mean_corruption_error is None, "a part of a suite has no mean corruption error"
    mean = np.mean([c.accuracy for c in run.summary.cells[1:]])
    assert row.corrupted_accuracy == pytest.approx(mean)
    assert "regenerated" in run.summary.provenance


@pytest.mark.slow
def test_backends_and_file_agree(split_checkpoint, class_folders, tmp_path):
    checkpoint = load_checkpoint(split_checkpoint)
    variant = calibrate(checkpoint, mode="weak", data=class_folders, affine="aux0")
    save_variant(variant, tmp_path / "v.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    export_onnx(checkpoint, variant, tmp_path / "v.onnx", pixels)
    names = [str(split_checkpoint), str(tmp_path / "v.safetensors")]
    options = {"suite": "cifar10", "data": class_folders}
    by_torch = evaluate(names, backend="torch", output=tmp_path / "t", **options)
    both = [*names, str(tmp_path / "v.onnx")]
    by_ort = evaluate(both, backend="onnxruntime", output=tmp_path / "o", **options)
    for name in names:
        a = read_target_cell(by_torch.folder, name, "clean")
        b = read_target_cell(by_ort.folder, name, "clean")
        np.testing.assert_allclose(a["nll"], b["nll"], rtol=1e-4)
    exported = read_target_cell(by_ort.folder, both[2], "clean")
    np.testing.assert_allclose(exported["nll"], b["nll"], rtol=1e-4)
    with pytest.raises(UsageError, match="onnxruntime only"):
        evaluate(both, backend="torch", output=tmp_path / "x", **options)


def test_a_run_goes_on_where_it_was_killed_and_ends_alike(
    split_checkpoint, class_folders, tmp_path, monkeypatch
):
    options = {"suite": "cifar10c", "data": class_folders, "output": tmp_path / "run", **PART}
    targets = [str(split_checkpoint), f"{split_checkpoint}:aux0"]
    whole = evaluate(targets, **{**options, "output": tmp_path / "whole"})

    written = []

    def dies_at_the_fifth(path, columns, key):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path)
        write_cell(path, columns, key)

    monkeypatch.setattr("recal.evaluation.cells.write_cell", dies_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        evaluate(targets, **options)
    written.clear()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.parquet")}
    assert len(kept) == 4

    def counts(path, columns, key):
        written.append(path)
        write_cell(path, columns, key)

    monkeypatch.setattr("recal.evaluation.cells.write_cell", counts)
    resumed = evaluate(targets, **options)
    assert len(written) == 10 - 4
    assert not set(written) & set(kept)
    assert resumed.summary == whole.summary


@pytest.mark.slow
def test_changed_inputs_never_reuse_a_cell(split_checkpoint, class_folders, tmp_path, monkeypatch):
    import shutil

    data = tmp_path / "data"
    shutil.copytree(class_folders, data)
    options = {"suite": "cifar10", "data": data, "output": tmp_path / "run"}
    calls = []

    def counts(path, columns, key):
        calls.append(path)
        write_cell(path, columns, key)

    monkeypatch.setattr("recal.evaluation.cells.write_cell", counts)

    def computed(**changed):
        calls.clear()
        evaluate([str(split_checkpoint)], **{**options, **changed})
        return len(calls)

    assert computed() == 1
    assert computed() == 0
    assert computed(mean=(0.5, 0.5, 0.5)) == 1, "preprocessing"
    assert computed(limit=20) == 1, "choice of images"
    assert computed() == 1, "back again: the cell of the sample stood in its place"
    picture = next((data / "test" / "class0").iterdir())
    shutil.copy(data / "test" / "class1" / "0.png", picture)
    assert computed() == 1, "data"
    for cell in (tmp_path / "run").rglob("*.parquet"):
        cell.write_bytes(cell.read_bytes()[:-30])
    assert computed() == 1, "a damaged file"


def test_changed_weights_labels_and_classes_never_reuse_a_cell(
    split_checkpoint, published, tmp_path
):
    """In one folder, under the same names: each run's cell is of what it was given."""
    import shutil

    suite, folder = published
    path = tmp_path / "c.pth"
    shutil.copy(split_checkpoint, path)

    def evaluated(suite=suite, **options):
        run = evaluate(
            [str(path)], suite=suite, data=folder, corruptions=["contrast"], severities=[2],
            output=tmp_path / "run", **options,
        )  # fmt: skip
        files = (run.folder / "cells").rglob("contrast-2.parquet")
        return max(file.stat().st_mtime_ns for file in files), read_target_cell(
            run.folder, str(path), "contrast-2"
        )

    first, before = evaluated()
    assert evaluated()[0] == first
    assert evaluated(batch_size=2, threads=3)[0] == first, "batches and threads change no number"
    labels = np.load(folder / "labels.npy")
    np.save(folder / "labels.npy", (labels + 1) % 10)
    second, after = evaluated()
    assert second != first
    assert after["label"].tolist() == [4, 2, 5, 2]
    assert after["prediction"].tolist() == before["prediction"].tolist()
    np.save(folder / "labels.npy", labels)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["fc.bias"] += torch.arange(10) * 100.0
    torch.save(content, path)
    third, changed = evaluated()
    assert set(changed["prediction"].tolist()) == {9}
    # a suite of another declaration: half the rows
    half = replace(suite, first=2)
    assert len(evaluated(suite=half)[1]["label"]) == 2
    assert evaluated()[0] != third


def test_published_rows_are_read_by_severity(published, tmp_path, split_checkpoint):
    suite, folder = published
    cells = suite.cells()
    images = open_suite_images(suite, tmp_path, MODEL, cells)
    assert images.clean is None
    assert images.provenance == "published files"
    everything = np.load(folder / "pixelate.npy")
    found = images.read(Cell("pixelate", 3), np.array([0, 2]))
    assert np.array_equal(found, everything[[8, 10]])
    assert images.chosen(cells[0]).labels.tolist() == [3, 1, 4, 1]
    run = evaluate([str(split_checkpoint)], suite=suite, data=tmp_path, output=tmp_path / "run")
    assert run.summary.targets[0].clean_accuracy is None
    assert run.summary.targets[0].mean_corruption_error is not None
    assert len(run.summary.cells) == 10
    # a folder that `recal data generate` wrote is no published one
    (folder / "PROVENANCE.json").write_text(
        '{"label": "regenerated: by somebody"}', encoding="utf-8"
    )
    assert images.provenance == "regenerated: by somebody"
    # in the folder itself, too
    assert open_suite_images(suite, folder, MODEL, cells).published.where == folder


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("contrast", np.zeros((20, 32, 32, 3), np.float32), r"expected uint8 \(20, 32, 32, 3\)"),
        ("contrast", np.zeros((19, 32, 32, 3), np.uint8), r"got uint8 \(19, 32, 32, 3\)"),
        ("labels", np.full(20, 10, np.uint8), "expected labels 0 to 9, got 10 to 10"),
        ("labels", np.zeros(7, np.uint8), r"expected 20 labels, got \(7,\)"),
        ("contrast", None, r"without contrast\.npy"),
        ("labels", None, r"without labels\.npy"),
    ],
)
def test_faults_in_published_files_are_refused(
    published, tmp_path, split_checkpoint, name, array, message
):
    suite, folder = published
    if array is None:
        (folder / f"{name}.npy").unlink()
    else:
        np.save(folder / f"{name}.npy", array)
    with pytest.raises(RecalError, match=message):
        evaluate(
            [str(split_checkpoint)], suite=suite, data=tmp_path, output=tmp_path / "run",
            corruptions=["contrast"],
        )  # fmt: skip
    assert not list(tmp_path.rglob("*.parquet"))


def test_labels_beyond_the_classes_are_refused(split_checkpoint, tmp_path):
    np.save(tmp_path / "test_images.npy", np.zeros((3, 32, 32, 3), np.uint8))
    np.save(tmp_path / "test_labels.npy", np.array([0, 9, 10]))
    with pytest.raises(InputError, match="expected labels 0 to 9 of suite cifar10, got 0 to 10"):
        evaluate([str(split_checkpoint)], suite="cifar10", data=tmp_path, output=tmp_path / "run")


def test_a_target_with_nan_is_named_and_the_others_go_on(split_checkpoint, class_folders, tmp_path):
    content = torch.load(split_checkpoint, weights_only=True)
    content["state_dict"]["bn1.aux_bn.0.weight"][3] = float("nan")
    torch.save(content, tmp_path / "nan.pth")
    run = evaluate(
        [f"{tmp_path / 'nan.pth'}:aux0", f"{tmp_path / 'nan.pth'}:main"],
        suite="cifar10", data=class_folders, output=tmp_path / "run",
    )  # fmt: skip
    assert run.failures == ("aux0, clean: NaN or infinite logits, first for image 0.",)
    assert [cell.target for cell in run.summary.cells] == [f"{tmp_path / 'nan.pth'}:main"]


def test_a_second_run_in_the_same_folder_is_kept_out(tmp_path):
    with (
        locked(tmp_path / "run"),
        pytest.raises(RecalError, match="another recal process writes to it"),
        locked(tmp_path / "run"),
    ):
        pass
    with locked(tmp_path / "run"):
        pass


def test_cell_is_whole_or_absent(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    path = cell_file(tmp_path, "ab" * 32, Cell(None, None))
    columns = {"index": np.arange(3, dtype=np.int32), "nll": np.ones(3, np.float32)}
    write_cell(path, columns, "key")
    found = read_cell(path, "key")
    assert all(np.array_equal(found[name], columns[name]) for name in columns)
    assert read_cell(path, "another key") is None

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    before = path.read_bytes()
    with pytest.raises(RecalError, match="No space left on device"):
        write_cell(path, columns, "key")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["clean.parquet"]


def test_sample_is_stratified_seeded_and_in_order():
    labels = np.repeat(np.arange(10), 50)  # sorted by class, as class folders are
    chosen = stratified_sample(labels, 103, seed=0)
    assert len(set(chosen.tolist())) == 103
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(labels[chosen])
    assert counts.min() == 10
    assert counts.max() == 11
    assert np.array_equal(chosen, stratified_sample(labels, 103, seed=0))
    assert not np.array_equal(chosen, stratified_sample(labels, 103, seed=1))
    assert np.array_equal(stratified_sample(labels, None, 0), np.arange(500))


def test_variant_finds_its_weights_and_refuses_others(split_checkpoint, class_folders, tmp_path):
    variant = calibrate(load_checkpoint(split_checkpoint), mode="weak", data=class_folders)
    save_variant(variant, tmp_path / "v.safetensors")
    content = torch.load(split_checkpoint, weights_only=True)
    content["state_dict"]["fc.bias"] += 1
    torch.save(content, tmp_path / "other.pth")
    options = {"suite": "cifar10", "data": class_folders, "output": tmp_path / "run"}
    names = [str(tmp_path / "v.safetensors")]
    evaluate(names, checkpoint=split_checkpoint, **options)
    evaluate([str(split_checkpoint), *names], **options)
    with pytest.raises(InputError, match="expected the weights that the variant was made for"):
        evaluate([str(tmp_path / "other.pth"), *names], **options)


def test_summary_is_written_as_json_and_csv(split_checkpoint, class_folders, tmp_path):
    run = evaluate(
        [], checkpoint=split_checkpoint, suite="cifar10", data=class_folders,
        output=tmp_path / "run",
    )  # fmt: skip
    assert [row.target for row in run.summary.targets] == ["main", "aux0"]
    assert read_summary(run.folder) == run.summary
    document = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    assert document["summary"][1]["target"] == "aux0"
    lines = (run.folder / "summary.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("target,corruption,severity,n,accuracy")
    assert len(lines) == 3


def test_what_lies_in_the_folder_but_failed_now_is_not_of_the_run(
    split_checkpoint, class_folders, tmp_path, monkeypatch
):
    from recal import corruptions
    from recal.runs.summary import summarise_run

    options = {"suite": "cifar10c", "data": class_folders, "output": tmp_path / "run", **PART}
    whole = evaluate([str(split_checkpoint)], **options)
    real = corruptions.corrupt

    def corrupt(images, name, severity, **kwargs):
        if name == "pixelate":
            raise InputError("pixelate: expected something, got none.")
        return real(images, name, severity, **kwargs)

    monkeypatch.setattr(corruptions, "corrupt", corrupt)
    later = evaluate([str(split_checkpoint)], **{**options, "seed": 1})
    assert len(later.failures) == 2
    assert len(whole.summary.cells) == 5
    assert len(list((tmp_path / "run").rglob("*.parquet"))) == 5
    summary, _ = summarise_run(tmp_path / "run")
    assert {row.corruption for row in summary.cells} == {None, "contrast"}


def test_labels_are_as_short_as_tells_targets_apart(split_checkpoint, tmp_path):
    import shutil

    from recal.evaluation.targets import resolve_targets

    files = [tmp_path / "a" / "x.pth", tmp_path / "b" / "x.pth", tmp_path / "b" / "y.pth"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        shutil.copy(split_checkpoint, file)
    x, other_x, y = map(str, files)

    def labels(*names):
        return [target.label for target in resolve_targets(names, None, AS_FOUND)]

    assert labels(x, f"{x}:aux0") == ["main", "aux0"]
    assert labels(x, y, f"{y}:aux0") == ["x.pth", "y.pth", "aux0"]
    assert labels(x, other_x) == [x, other_x]


class _CountedReads:
    """Reads cells as `read_cell` does, counts them and the arrays of them that are still alive."""

    def __init__(self):
        self.read, self.alive, self.most = 0, [], 0

    def watch(self, columns):
        self.alive = [reference for reference in self.alive if reference() is not None]
        self.alive.append(weakref.ref(columns["rank"]))
        self.most = max(self.most, len(self.alive))

    def __call__(self, path, key=None):
        columns = read_cell(path, key)
        if columns is not None:
            # a copy, because arrays of pyarrow's tables share what they are made of
            columns = {name: column.copy() for name, column in columns.items()}
            self.read += 1
            self.watch(columns)
        return columns


def test_no_cell_is_kept_and_each_is_read_once_for_all_results(
    split_checkpoint, class_folders, tmp_path, monkeypatch
):
    options = {"suite": "cifar10c", "data": class_folders, "output": tmp_path / "run", **PART}
    targets = [str(split_checkpoint), f"{split_checkpoint}:aux0"]
    read, made = _CountedReads(), _CountedReads()

    def on_cell(_cell, columns):
        assert set(columns) == set(targets)
        for of_target in columns.values():
            made.watch(of_target)

    for module in ("recal.runs.store", "recal.evaluation.cells"):
        monkeypatch.setattr(f"{module}.read_cell", read)
    run = evaluate(targets, on_cell=on_cell, **options)
    assert len(run.summary.cells) == 10
    assert made.most == 2, "one cell of two targets"
    assert read.read == 10, "the results read every cell once"
    assert read.most <= 2
    again = evaluate(targets, on_cell=on_cell, **options)
    assert again.summary == run.summary
    assert read.read == 10 + 10 + 10, "once to find it, once for the results"
    assert made.most == 2
    assert read.most <= 3


def test_targets_of_equal_tensors_and_preprocessing_are_computed_once(
    split_checkpoint, class_folders, tmp_path, monkeypatch
):
    from recal.onnx_file.session import OnnxNetwork

    images = []
    logits = OnnxNetwork.logits

    def counted(self, inputs):
        images.append(len(inputs))
        return logits(self, inputs)

    monkeypatch.setattr(OnnxNetwork, "logits", counted)
    options = {"suite": "cifar10c", "data": class_folders, **PART}
    main, same = str(split_checkpoint), f"{split_checkpoint}:main"
    alone = evaluate([main], output=tmp_path / "alone", **options)
    once = sum(images)
    assert once == 5 * 40
    images.clear()
    seen = []
    run = evaluate(
        [main, f"{split_checkpoint}:aux0", same], output=tmp_path / "run",
        on_cell=lambda _cell, columns: seen.append(list(columns)), **options,
    )  # fmt: skip
    assert sum(images) == 2 * once, "three targets of two networks"
    assert len(list(run.folder.rglob("*.parquet"))) == 2 * 5
    assert seen == [[main, f"{split_checkpoint}:aux0", same]] * 5
    first, _, third = run.summary.targets
    assert [row.target for row in run.summary.targets] == [main, f"{split_checkpoint}:aux0", same]
    assert third.clean_accuracy == first.clean_accuracy == alone.summary.targets[0].clean_accuracy
    assert third.clean_difference.value == 0
    cells = [[row.nll for row in run.summary.cells if row.target == name] for name in (main, same)]
    assert cells[0] == cells[1]


def test_a_failure_of_a_network_is_reported_for_every_target_that_is_it(
    split_checkpoint, class_folders, tmp_path
):
    content = torch.load(split_checkpoint, weights_only=True)
    content["state_dict"]["bn1.aux_bn.0.weight"][3] = float("nan")
    torch.save(content, tmp_path / "nan.pth")
    path = str(tmp_path / "nan.pth")
    run = evaluate(
        [f"{path}:aux0", path, f"{tmp_path}/./nan.pth:aux0"], suite="cifar10", data=class_folders,
        output=tmp_path / "run",
    )  # fmt: skip
    assert len(run.failures) == 2
    assert all("NaN or infinite logits" in line for line in run.failures)
    assert [row.target for row in run.summary.cells] == [path]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"suite": "cifar1O"}, "expected one of .* got 'cifar1O'"),
        ({"corruptions": ["fgo"]}, "--corruptions .* got 'fgo'.* Did you mean 'fog'"),
        ({"severities": [6]}, "--severities: expected one of 1, 2, 3, 4, 5, got '6'"),
        ({"backend": "tourch"}, "--backend: expected one of .* Did you mean 'torch'"),
        ({"backend": "onnxruntime", "autocast": torch.bfloat16}, "--autocast: expected --backend"),
    ],
)
def test_wrong_choices_are_reported_before_anything_about_files(tmp_path, wrong, message):
    options = {"suite": "cifar10c", "data": tmp_path / "no such folder", **wrong}
    with pytest.raises(UsageError, match=message):
        evaluate(["no such checkpoint.pth"], output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_wrong_targets_are_reported_before_missing_data(split_checkpoint, tmp_path):
    options = {"suite": "cifar10c", "data": tmp_path / "missing", "output": tmp_path / "run"}
    with pytest.raises(UsageError, match="expected a branch out of main, aux0, got 'aux1'"):
        evaluate(["aux1"], checkpoint=split_checkpoint, **options)
    with pytest.raises(UsageError, match="is given twice"):
        evaluate(["main", "main"], checkpoint=split_checkpoint, **options)
    with pytest.raises(InputError, match="missing"):
        evaluate(["main"], checkpoint=split_checkpoint, **options)


def test_a_misspelt_argument_is_named(split_checkpoint):
    with pytest.raises(TypeError, match="unexpected keyword argument 'severity'"):
        evaluate([split_checkpoint], severity=3)
    with pytest.raises(InputError, match=r"std: expected 3 numbers, one for each channel"):
        evaluate([split_checkpoint], std=(0.1, 0.2))
