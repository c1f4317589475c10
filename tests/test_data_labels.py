"""Labels and classes in files of their own give the labels that class folders give."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from recal.data.folders import open_images
from recal.data.label_files import read_classes, read_labels
from recal.data.labels import nearest_answers
from recal.datasets.classes import class_answers, network_order
from recal.errors import InputError

WNIDS = ["n02123045", "n01440764", "n03388043"]
CLASS_OF = {"n02123045": 281, "n01440764": 0, "n03388043": 562}
# the class of ImageNet's validation images 1 to 7
TRUTH = [0, 1, 2, 1, 0, 2, 2]
NAMES = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 8)]
EXPECTED = [CLASS_OF[WNIDS[i]] for i in TRUTH]


@pytest.fixture
def flat(tmp_path):
    """A flat folder of images; the level of each is its number."""
    folder = tmp_path / "ILSVRC" / "val"
    folder.mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.fromarray(np.full((4, 4, 3), 30 * i, np.uint8)).save(folder / name, quality=95)
    return folder


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def ground_truth(folder):
    """Write the development kit's files: its ids are in another order than the synsets."""
    ids = {"n03388043": 1, "n01440764": 2, "n02123045": 3}
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(n, wnid, "a thing", 0) for wnid, n in ids.items()] + [(1001, "n00001740", "all", 3)]
    folder.mkdir(parents=True, exist_ok=True)
    savemat(folder / "meta.mat", {"synsets": np.array(rows, kind)})
    lines = [str(ids[WNIDS[i]]) for i in TRUTH]
    write(folder / "ILSVRC2012_validation_ground_truth.txt", *lines)


def described(folder, **entries):
    lines = [f"{key} = {json.dumps(str(value))}" for key, value in entries.items()]
    return write(folder / "set.toml", *lines)


def beside(flat):
    ground_truth(flat)
    return flat


def in_kit(flat):
    ground_truth(flat.parent / "ILSVRC2012_devkit_t12" / "data")
    return flat.parent


def kaggle(flat):
    inside = flat.parent / "Data" / "CLS-LOC"
    inside.mkdir(parents=True)
    flat.rename(inside / "val")
    lines = [f"{name[:-5]},{WNIDS[i]} 1 2 3 4" for name, i in zip(NAMES, TRUTH, strict=True)]
    write(flat.parent.parent / "LOC_val_solution.csv", "ImageId,PredictionString", *lines)
    return flat.parent.parent


def csv_beside(flat):
    lines = [
        f'{name},{CLASS_OF[WNIDS[i]]},"a, b",{WNIDS[i]}'
        for name, i in zip(NAMES, TRUTH, strict=True)
    ]
    write(flat / "labels.csv", "filename,label,text,wnid", *reversed(lines))
    return flat


def hub_metadata(flat):
    write(flat / "metadata.csv", "file_name,label",
          *(f"{name},{label}" for name, label in zip(NAMES, EXPECTED, strict=True)))  # fmt: skip
    return flat


def lines_of_caffe(flat):
    write(
        flat.parent / "val.txt", *(f"{n} {label}" for n, label in zip(NAMES, EXPECTED, strict=True))
    )
    return flat.parent


def toml_of_paths(flat):
    rows = (f"val/{name}\t{WNIDS[i]}" for name, i in zip(NAMES, TRUTH, strict=True))
    path = write(flat.parent / "somewhere.tsv", *rows)
    return described(flat.parent.parent, images="ILSVRC/val", labels=path)


def json_table(flat):
    table = {name: WNIDS[i] for name, i in zip(NAMES, TRUTH, strict=True)}
    path = write(flat.parent / "table.json", json.dumps(table))
    return described(flat.parent, images=flat, labels=path.name)


def class_folders(flat):
    for name, i in zip(NAMES, TRUTH, strict=True):
        (flat / WNIDS[i]).mkdir(exist_ok=True)
        (flat / name).rename(flat / WNIDS[i] / name)
    return flat


LAYOUTS = [
    beside, in_kit, kaggle, csv_beside, hub_metadata, lines_of_caffe, toml_of_paths, json_table,
    class_folders,
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_file_of_labels_gives_the_same_classes(flat, layout):
    source = open_images(layout(flat), "test")
    answers = class_answers(source, network_order(1000, "imagenet", source.classes))
    assert answers.shape == (7, 1)
    found = {int(source[i][0, 0, 0]): int(answers[i, 0]) for i in range(7)}
    assert [found[30 * i] for i in range(7)] == EXPECTED
    assert source.fingerprint([1, 0]) != source.fingerprint([0, 1])


def test_a_tar_of_the_validation_images_is_labelled_like_the_folder(flat, tmp_path):
    ground_truth(flat.parent)
    place = shutil.make_archive(str(flat.parent / "ILSVRC2012_img_val"), "tar", flat)
    packed, plain = open_images(flat.parent / place, "test"), open_images(flat, "test")
    assert packed.labels.tolist() == plain.labels.tolist()
    assert packed.fingerprint(range(7)) == plain.fingerprint(range(7))


def test_a_part_of_the_validation_images_is_labelled_by_number(flat):
    ground_truth(flat.parent)
    for i in (0, 1, 4):
        (flat / NAMES[i]).unlink()
    source = open_images(flat, "test")
    assert [source.classes[label] for label in source.labels] == [
        WNIDS[TRUTH[i]] for i in (2, 3, 5, 6)
    ]


REAL = [[281, 0], [], [562], [0], [7, 281], [], [5]]


@pytest.mark.parametrize("folders", [False, True])
def test_real_labels_are_several_and_images_without_any_are_skipped(flat, folders):
    if folders:
        class_folders(flat)
    path = write(flat.parent / "real.json", json.dumps(REAL))
    source = open_images(described(flat.parent, images=flat, labels=path), "test")
    answers = class_answers(source, network_order(1000, "imagenet", source.classes))
    found = {int(source[i][0, 0, 0]): set(answers[i].tolist()) for i in range(len(source))}
    assert found == {30 * i: set(row) for i, row in enumerate(REAL) if row}
    scores = np.zeros((len(source), 1000), np.float32)
    scores[:, 281] = 1
    nearest = nearest_answers(scores, answers)
    right = {int(source[i][0, 0, 0]) for i in np.flatnonzero(nearest == scores.argmax(1))}
    assert right == {0, 30 * 4}, "those for which the prediction, 281, is among the answers"


def test_accuracy_by_real_labels_is_that_of_the_published_code():
    """timm's evaluator is the published example's."""
    import torch
    from timm.data.real_labels import RealLabelsImagenet

    rng = np.random.default_rng(0)
    real = [rng.choice(20, rng.integers(0, 4), replace=False).tolist() for _ in range(200)]
    scores = rng.standard_normal((200, 20)).astype(np.float32)
    evaluator = RealLabelsImagenet.__new__(RealLabelsImagenet)
    evaluator.real_labels = {str(i): row for i, row in enumerate(real)}
    evaluator.filenames, evaluator.topk, evaluator.sample_idx = [*map(str, range(200))], (1, 5), 0
    evaluator.is_correct = {1: [], 5: []}
    evaluator.add_result(torch.from_numpy(scores))
    kept = [i for i, row in enumerate(real) if row]
    padded = np.array([sorted([min(real[i])] * (4 - len(real[i])) + real[i]) for i in kept])
    nearest = nearest_answers(scores[kept], padded)
    rank = (scores[kept] > scores[kept, nearest][:, None]).sum(axis=1)
    assert [100 * np.mean(rank < k) for k in (1, 5)] == pytest.approx(
        [evaluator.get_accuracy(k) for k in (1, 5)]
    )


def test_a_class_list_numbers_folders_that_are_no_synsets(tmp_path):
    for i, name in enumerate(("cat", "dog", "ape")):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(tmp_path / "val" / name / "1.png")
    source = open_images(tmp_path, "test")
    assert source.labels.tolist() == [0, 1, 2]
    write(tmp_path / "classes.txt", "dog", "bee", "cat", "ape")
    source = open_images(tmp_path, "test")
    answers = class_answers(source, network_order(4, "cifar", source.classes))
    found = {int(source[i][0, 0, 0]): int(answers[i, 0]) for i in range(3)}
    assert found == {0: 2, 1: 0, 2: 3}, "of a part of the classes too"
    write(tmp_path / "classes.txt", "dog", "bee", "cats")
    with pytest.raises(InputError, match=r"classes of the list of 3, got ape, cat\. Did|got ape"):
        open_images(tmp_path, "test")


@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        ("a.txt", ["great white shark", "tench"], ("great white shark", "tench")),
        ("a.txt", ["n01440764 tench, Tinca", "n01443537 goldfish"], ("n01440764", "n01443537")),
        ("a.txt", ["1 001.Albatross", "2 002.Auklet"], ("001.Albatross", "002.Auklet")),
        ("a.txt", ["7 of spades", "9 lives"], ("7 of spades", "9 lives")),
        ("a.json", ['["b", "a"]'], ("b", "a")),
        ("a.json", ['{"b": 1, "a": 0}'], ("a", "b")),
        ("a.json", ['{"1": ["n2", "b"], "0": ["n1", "a"]}'], ("n1", "n2")),
    ],
)
def test_class_lists_are_read_as_they_are_published(tmp_path, name, lines, expected):
    assert read_classes(write(tmp_path / name, *lines)) == expected


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "labels.csv",
            ["file,label", f"{NAMES[0]},3"],
            r"each of 7 images .*none for 6: ILSVRC2012_",
        ),
        (
            "labels.csv",
            ["file,size", "a,3"],
            "column of files .* and one of labels .* got file, size",
        ),
        ("labels.csv", ["file,label", "a"], "row 1: expected a file and a label, got less"),
        ("labels.csv", ["file,label", "a,"], "row 1: expected a file and a label, got less"),
        ("labels.csv", ["file,label", "a,1", "a,2"], "expected one label for 'a', got two"),
        ("labels.csv", [""], "expected labels, got none"),
        ("ILSVRC2012_validation_ground_truth.txt", ["1"], r"expected meta\.mat of the development"),
    ],
)
def test_files_of_labels_that_do_not_fit_are_refused(flat, name, lines, message):
    write(flat / name, *lines)
    with pytest.raises(InputError, match=message):
        open_images(flat, "test")


def test_a_ground_truth_that_is_too_short_or_of_other_ids_is_refused(flat):
    ground_truth(flat)
    path = flat / "ILSVRC2012_validation_ground_truth.txt"
    whole = path.read_text(encoding="utf-8").split()
    write(path, *whole[:-1])
    with pytest.raises(
        InputError, match=r"label for each of 7 images .* none for 1: ILSVRC2012_val_0"
    ):
        open_images(flat, "test")
    write(path, *whole[:-1], "4")
    with pytest.raises(InputError, match=r"ground_truth\.txt: expected ids of meta\.mat, got 4"):
        open_images(flat, "test")
    (flat / "meta.mat").write_bytes(b"no matrix")
    with pytest.raises(
        InputError, match=r"meta\.mat: expected meta\.mat of ImageNet's development"
    ):
        open_images(flat, "test")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"images": "none"}, "none: expected a folder of images, but it does not exist"),
        (
            {"images": "val", "labels": "none.csv"},
            "expected a file of labels, but it does not exist",
        ),
        ({"images": "val", "label": "a"}, "'labels'"),
        ({"labels": "a"}, "images"),
        ({"images": "set.toml"}, "images: expected a folder or file of images"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(flat, entries, message):
    with pytest.raises(InputError, match=message):
        open_images(described(flat.parent, **entries), "test")


def test_several_files_of_labels_are_refused(flat):
    write(flat / "labels.csv", "file,label")
    write(flat / "metadata.csv", "file_name,label")
    with pytest.raises(InputError, match=r"expected one file of labels, got .* Keep one"):
        open_images(flat, "test")


def test_unknown_synsets_are_refused_by_name(flat):
    write(flat / "labels.csv", *(f"{name},n00000001" for name in NAMES))
    source = open_images(flat, "test")
    with pytest.raises(InputError, match="got 'n00000001'"):
        class_answers(source, network_order(1000, "imagenet", source.classes))
    assert read_labels(flat / "labels.csv")[NAMES[0]] == ("n00000001",)
