"""The doctor: distances against closed forms, and one patient for every fault."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recal.checkpoint.checkpoint import load_checkpoint
from recal.errors import InputError, UsageError
from recal.inspection.distances import gaussian_distances, inspect_checkpoint
from recal.inspection.findings import CHECKS
from recal.inspection.scores import score_branches
from recal.networks.spec import ModelOverrides
from recal.report.plots import plot_inspection
from tests import dual_networks
from tests.dual_networks import NORMS, Network, randomise


def loaded(tmp_path, change=lambda _: None, norm="mixbn", name="f.pth", **options):
    state = randomise(Network(NORMS[norm])).state_dict()
    change(state)
    torch.save(state, tmp_path / name)
    return load_checkpoint(tmp_path / name, **options)


def kinds(checkpoint):
    return [finding.kind for finding in inspect_checkpoint(checkpoint).findings]


def test_distances_are_those_of_the_closed_forms(tmp_path):
    checkpoint = loaded(tmp_path)
    distances = inspect_checkpoint(checkpoint).branches[1].distances
    assert [d.layer for d in distances] == checkpoint.layers
    for d in distances:
        main, aux = (
            {leaf: checkpoint.branch(b)[f"{d.layer}.{leaf}"].double().numpy()
             for leaf in ("weight", "bias", "running_mean", "running_var")}
            for b in ("main", "aux0")
        )  # fmt: skip
        v, w = main["running_var"] + 1e-5, aux["running_var"] + 1e-5
        m, n = main["running_mean"], aux["running_mean"]
        assert d.mean_shift == pytest.approx(np.sqrt(np.mean((n - m) ** 2 / v)))
        assert d.log_variance_ratio == pytest.approx(np.sqrt(np.mean((np.log(w) - np.log(v)) ** 2)))
        forward = 0.5 * (np.log(w / v) + (v + (m - n) ** 2) / w - 1)  # KL(main || aux)
        backward = 0.5 * (np.log(v / w) + (w + (m - n) ** 2) / v - 1)
        assert d.symmetric_kl == pytest.approx(np.mean(forward + backward))
        own = np.concatenate([aux["weight"], aux["bias"]])
        base = np.concatenate([main["weight"], main["bias"]])
        norm = np.linalg.norm
        assert d.affine_distance == pytest.approx(norm(own - base) / norm(base))


values = st.lists(st.floats(-50, 50), min_size=3, max_size=3).map(torch.tensor)
variances = st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3).map(torch.tensor)


@settings(max_examples=60)
@given(values, variances, values, variances)
def test_symmetric_kl_is_symmetric_and_zero_only_where_equal(mean, var, other_mean, other_var):
    there = gaussian_distances(mean, var, other_mean, other_var)[2]
    back = gaussian_distances(other_mean, other_var, mean, var)[2]
    assert there == pytest.approx(back, rel=1e-9, abs=1e-12)
    assert there >= -1e-12
    assert gaussian_distances(mean, var, mean, var) == (0.0, 0.0, 0.0)


def test_layers_without_affine_have_no_affine_distance(tmp_path):
    def change(state):
        for key in [k for k in state if "norm1" in k and k.endswith(("weight", "bias"))]:
            del state[key]

    distances = inspect_checkpoint(loaded(tmp_path, change)).branches[1].distances
    assert distances[0].affine_distance is None
    assert distances[1].affine_distance is not None


def test_healthy_checkpoint_has_no_findings(tmp_path):
    checkpoint = loaded(tmp_path)
    inspection = inspect_checkpoint(checkpoint)
    assert inspection.findings == ()
    assert [(b.name, b.layers, b.channels) for b in inspection.branches] == [
        ("main", 2, 14),
        ("aux0", 2, 14),
    ]
    assert inspection.findings == ()


def reset(state, prefix):
    state[f"{prefix}.running_mean"].zero_()
    state[f"{prefix}.running_var"].fill_(1.0)


def same(state, leaves):
    for key in list(state):
        if ".aux_bn." in key and key.endswith(leaves):
            state[key] = state[key.replace(".aux_bn", "")].clone()


def fill(key, value):
    return lambda state: state[key].view(-1)[:2].fill_(value)


FAULTS = {
    "never-trained": (
        lambda s: [reset(s, "norm1.aux_bn"), reset(s, "body.1.aux_bn")],
        r"aux0: never trained: mean 0 and variance 1 throughout\. .*do not deploy",
    ),
    "never-trained in a layer": (
        lambda s: reset(s, "norm1"),
        r"main: norm1 never trained: .* in every channel\. ",
    ),
    "not-finite": (
        fill("norm1.aux_bn.running_mean", math.nan),
        r"aux0: NaN or infinity in norm1.*recal calibrate .*its statistics",
    ),
    "not-finite in the weights": (
        fill("fc.weight", math.inf),
        r"NaN or infinity in the shared weights fc.weight\. No branch",
    ),
    "negative-variance": (
        fill("norm1.running_var", -0.5),
        r"main: negative variances in norm1\. .*recal calibrate",
    ),
    "vanishing-variance": (
        fill("norm1.running_var", 0.0),
        r"main: 2 channels of variance 0 in norm1\. .*dead",
    ),
    "dead-channels": (
        fill("body.1.aux_bn.weight", 0.0),
        r"aux0: 2 channels of weight 0 in body.1\. ",
    ),
    "equal-branches": (
        lambda s: same(s, ("weight", "bias", "running_mean", "running_var")),
        r"aux0: the same values as main\. .*never used in training",
    ),
    "equal-branches in statistics": (
        lambda s: same(s, ("running_mean", "running_var")),
        r"aux0: the same statistics as main\. ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_found_with_what_follows_from_it(fault, tmp_path):
    change, message = FAULTS[fault]
    inspection = inspect_checkpoint(loaded(tmp_path, change))
    (finding,) = inspection.findings
    assert finding.kind == fault.partition(" ")[0]
    (warning,) = (finding.sentence for finding in inspection.findings)
    assert __import__("re").search(message, warning)


def test_roles_in_doubt_are_a_finding_until_given(tmp_path):
    assert kinds(loaded(tmp_path, norm="acl")) == ["roles"]
    assert kinds(loaded(tmp_path, norm="acl", roles="main=0")) == []


def test_activations_that_timm_lost_are_a_finding(tmp_path):
    import timm
    from timm.layers import convert_splitbn_model

    for name, expected in (("mobilenetv2_035", True), ("resnet18", False)):
        network = randomise(convert_splitbn_model(timm.create_model(name, num_classes=2), 2))
        torch.save(network.state_dict(), tmp_path / "f.pth")
        assert ("lost-activations" in kinds(load_checkpoint(tmp_path / "f.pth"))) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tf_efficientnet_b0_ap-f262efe1.pth", True), ("adv-efficientnet-b0.pth", True),
     ("tf_efficientnet_b0_aa.pth", False), ("map.pth", False)],
)  # fmt: skip
def test_adversarially_trained_efficientnet_wants_inceptions_preprocessing(
    name, expected, tmp_path
):
    def change(state):
        state["conv_stem.weight"] = state.pop("conv1.weight")

    checkpoint = loaded(tmp_path, change, name=name)
    assert (kinds(checkpoint) == ["ap-preprocessing"]) == expected
    told = dataclasses.replace(checkpoint, facts=ModelOverrides(mean=(0.5,) * 3))
    assert kinds(told) == []


def test_more_branches_than_dubn_has_are_a_finding(tmp_path, monkeypatch):
    class Three(dual_networks.DuBN):
        branches = 3

    torch.save(randomise(Network(Three)).state_dict(), tmp_path / "f.pth")
    assert kinds(load_checkpoint(tmp_path / "f.pth")) == ["width-collision"]


def test_every_check_has_a_patient_here():
    kinds_tested = {fault.partition(" ")[0] for fault in FAULTS}
    kinds_tested |= {"roles", "lost-activations", "ap-preprocessing", "width-collision"}
    kinds_tested.add("no-statistics")  # in tests/test_checkpoint_fitting.py
    assert len(kinds_tested) == len(CHECKS)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_plot_shows_every_layer_and_is_the_same_each_time(suffix, tmp_path):
    inspection = inspect_checkpoint(loaded(tmp_path, fill("norm1.running_mean", math.nan)))
    files = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for file in files:
        plot_inspection(inspection, file)
    assert files[0].read_bytes() == files[1].read_bytes()
    if suffix == ".svg":
        text = files[0].read_text(encoding="utf-8")
        assert all(f"<!-- {layer} -->" in text for layer in ("norm1", "body.1", "aux0"))


def test_plot_of_one_branch_or_another_format_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"ends in .png or .svg"):
        plot_inspection(inspect_checkpoint(loaded(tmp_path)), tmp_path / "f.pdf")
    one = loaded(tmp_path, lambda s: [s.pop(k) for k in list(s) if "aux" in k])
    with pytest.raises(UsageError, match="expected two branches"):
        plot_inspection(inspect_checkpoint(one), tmp_path / "f.png")


class TestScores:
    def test_accuracy_and_distance_are_those_of_the_branch(self, split_checkpoint, class_folders):
        from recal.data.folders import open_images
        from recal.variant.build import build

        checkpoint = load_checkpoint(split_checkpoint)
        source = open_images(class_folders, "test")
        pixels = torch.from_numpy(np.stack([source[i] for i in range(len(source))]))
        spec = checkpoint.spec
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        images = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
        scores = score_branches(checkpoint, class_folders)
        assert [score.branch for score in scores] == ["main", "aux0"]
        for score in scores:
            network = build(checkpoint, score.branch)
            with torch.no_grad():
                correct = (network(images).argmax(1).numpy() == source.labels).mean()
                stem = network.conv1(images).double()
            assert score.images == 40
            assert score.accuracy == pytest.approx(correct)
            # by hand for the first layer, where no earlier one matters
            layer = network.block1.layer[0].bn1
            own = stem.mean((0, 2, 3)), stem.var((0, 2, 3), correction=0)
            first = gaussian_distances(layer.running_mean, layer.running_var, *own)[2]
            assert score.furthest_distance >= first - 1e-6
            assert 0 < score.data_distance <= score.furthest_distance

    def test_images_without_labels_give_distances_alone(
        self, split_checkpoint, class_folders, tmp_path
    ):
        import shutil

        for i, image in enumerate(sorted((class_folders / "test").rglob("*.png"))):
            shutil.copy(image, tmp_path / f"{i}.png")
        scores = score_branches(load_checkpoint(split_checkpoint), tmp_path, samples=10)
        assert all(score.accuracy is None and score.images == 10 for score in scores)
        assert all(score.data_distance > 0 for score in scores)

    def test_labels_beyond_the_classes_are_refused(self, split_checkpoint, class_folders):
        checkpoint = load_checkpoint(split_checkpoint)
        with pytest.raises(InputError, match="expected 3 class folders, got 10"):
            score_branches(checkpoint.overridden(classes=3), class_folders)
