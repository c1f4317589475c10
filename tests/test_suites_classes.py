"""Suites of a part of the classes, in an order of their own, and with several right answers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from recal.checkpoint.checkpoint import load_checkpoint
from recal.data.folders import open_images
from recal.datasets.catalogue import wnids
from recal.errors import InputError
from recal.evaluation.evaluate import evaluate
from recal.evaluation.execution import Batch
from recal.inspection.scores import score_branches
from recal.networks.names import create_network
from recal.runs.store import read_target_cell
from recal.suites.clean import find_clean
from recal.suites.suite import class_count, kept_logits, load_suite, read_suite
from recal.variant.build import build
from tests.published_sets import write_suite

PART = ["n02123045", "n01440764", "n03388043"]
ORDER = wnids("imagenet")


@pytest.fixture
def folders(tmp_path):
    """Two pictures of each of five ImageNet classes, of which three are in the part."""
    rng = np.random.default_rng(0)
    for wnid in [*PART, ORDER[5], ORDER[900]]:
        for name in ("a", "b"):
            path = tmp_path / "set" / wnid / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    (tmp_path / "part.txt").write_text("\n".join(PART), encoding="utf-8")
    return tmp_path


def part_suite(folder, classes, extra):
    text = f'title="Part"\nfamily="cifar"\nclasses={classes}\n{extra}\n[clean]\nfolders=["set"]'
    return read_suite(write_suite(folder, text))


def network(folder, classes):
    torch.manual_seed(0)
    state = create_network("wrn10_1", classes).state_dict()
    torch.save({"arch": "wrn10_1", "state_dict": state}, folder / "n.pth")
    return folder / "n.pth"


def logits_of(path, source, indices):
    checkpoint = load_checkpoint(path)
    pixels = np.stack([source[i] for i in indices])
    spec = checkpoint.spec
    with torch.no_grad():
        return build(checkpoint)(torch.from_numpy(Batch(pixels).normalised(spec.normalisation)))


@pytest.mark.parametrize("own", [False, True])
def test_a_list_of_classes_keeps_their_images_and_logits(folders, own):
    """Of a network of all classes, or of one whose classes are those of the list, in its order."""
    if own:
        suite, path = part_suite(folders, 3, 'order="part.txt"'), network(folders, 3)
        assert kept_logits(suite) is None
    else:
        extra = 'order="wnids"\nsubset="part.txt"'
        suite, path = part_suite(folders, 1000, extra), network(folders, 1000)
        assert kept_logits(suite).tolist() == [ORDER.index(wnid) for wnid in PART]
    assert class_count(suite) == 3
    run = evaluate([str(path)], suite=suite, data=folders, output=folders / "run")
    cell = read_target_cell(run.folder, str(path), "clean")
    source = open_images(folders / "set", "test")
    chosen = [i for i, label in enumerate(source.labels) if source.classes[label] in PART]
    assert cell["index"].tolist() == chosen
    expected = [PART.index(source.classes[source.labels[i]]) for i in chosen]
    assert cell["label"].tolist() == expected
    logits = logits_of(path, source, chosen)
    logits = logits if own else logits[:, kept_logits(suite)]
    assert cell["prediction"].tolist() == logits.argmax(1).tolist()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('order="part.txt"', "order: expected 1000 classes, got 3 in part.txt"),
        ('subset="part.txt"', "subset: expected the order of all classes beside it, got 'sorted'"),
        ('order="wnids"\nsubset="odd.txt"', "subset: expected classes of order wnids, got cat"),
        ('order="../part.txt"', "order: expected one of"),
    ],
)
def test_lists_that_do_not_fit_are_refused(folders, extra, message):
    (folders / "odd.txt").write_text("cat\n", encoding="utf-8")
    with pytest.raises(InputError, match=message):
        part_suite(folders, 1000, extra)


def test_a_list_is_part_of_the_identity_of_a_suite(folders):
    extra = 'order="wnids"\nsubset="part.txt"'
    first = part_suite(folders, 1000, extra)
    (folders / "part.txt").write_text("\n".join(PART[:2]), encoding="utf-8")
    assert part_suite(folders, 1000, extra).text != first.text


def test_strangers_beside_a_list_are_refused(folders):
    suite = part_suite(folders, 1000, 'order="wnids"\nsubset="part.txt"')
    (folders / "set" / PART[0]).rename(folders / "set" / "cats")
    with pytest.raises(InputError, match=r"classes of suite small.*got 'cats'"):
        find_clean(suite, folders)


@pytest.fixture
def answered(class_folders, tmp_path):
    """Images of CIFAR's size under the names of ImageNet's validation set, with several answers."""
    rng = np.random.default_rng(0)
    source = open_images(class_folders, "test")
    answers = [rng.choice(10, rng.integers(0, 5), replace=False).tolist() for _ in source.paths]
    (tmp_path / "flat").mkdir()
    for i in range(len(source)):
        Image.fromarray(source[i]).save(tmp_path / "flat" / f"ILSVRC2012_val_{i + 1:08d}.png")
    (tmp_path / "real.json").write_text(json.dumps(answers), encoding="utf-8")
    (tmp_path / "real.toml").write_text('images = "flat"\nlabels = "real.json"', encoding="utf-8")
    return tmp_path / "real.toml", source, answers


def test_several_right_answers_count_in_eval_and_inspect(answered, split_checkpoint, tmp_path):
    place, source, answers = answered
    kept = [i for i, row in enumerate(answers) if row]
    logits = logits_of(split_checkpoint, source, kept).double()
    right = [int(top) in answers[i] for i, top in zip(kept, logits.argmax(1), strict=True)]
    run = evaluate([str(split_checkpoint)], suite="cifar10", data=place, output=tmp_path / "run")
    (cell,) = run.summary.cells
    assert (cell.n, cell.accuracy) == (len(kept), pytest.approx(np.mean(right)))
    best = [max(float(row[a]) for a in answers[i]) for i, row in zip(kept, logits, strict=True)]
    nll = np.mean(logits.logsumexp(1).numpy() - best)
    assert cell.nll == pytest.approx(nll, rel=1e-5)
    (score, _) = score_branches(load_checkpoint(split_checkpoint), place)
    assert (score.images, score.accuracy) == (len(kept), pytest.approx(np.mean(right)))


def test_other_answers_are_another_cell(answered, split_checkpoint, tmp_path):
    place, _, answers = answered
    request = {"suite": "cifar10", "data": place, "output": tmp_path / "run"}
    first = evaluate([str(split_checkpoint)], **request)
    every = [list(range(10)) if row else [] for row in answers]
    (tmp_path / "real.json").write_text(json.dumps(every), encoding="utf-8")
    second = evaluate([str(split_checkpoint)], **request)
    assert first.summary.cells[0].accuracy < second.summary.cells[0].accuracy == 1.0


@pytest.mark.parametrize("suffix", ["", "_n01751748"])
def test_the_suite_of_real_takes_its_labels_by_name(tmp_path, suffix):
    """Whatever folders they lie in; the hub's names end with the synset."""
    for number in (1, 2, 3, 4, 5, 6, 7):
        path = tmp_path / "imagenet" / "n01751748" / f"ILSVRC2012_val_{number:08d}{suffix}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    suite = load_suite("imagenet-real")
    found = find_clean(suite, tmp_path)
    # the first rows of the published list
    from recal.datasets.catalogue import timm_file

    rows = json.loads(timm_file("imagenet_real_labels.json").read_text(encoding="utf-8"))[:7]
    answers = found.labels[:, None] if found.answers is None else found.answers
    assert [set(row) for row in answers.tolist()] == [set(row) for row in rows if row]
