"""Estimators against peers that compute the same; .ci/run installs them beside the package."""

import copy
import warnings

import numpy as np
import pytest
import torch

from recal.calibration.estimators import one_pass
from tests.test_calibration_estimators import LAYERS, SPLITS, make_images, make_network


@pytest.mark.parametrize("split", SPLITS)
def test_pooled_is_what_fvcores_precise_bn_computes(split):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages that fvcore builds on
        precise_bn = pytest.importorskip("fvcore.nn.precise_bn", reason="fvcore is not installed")
    network = make_network().double()
    del network.unused  # which fvcore would set to mean 0 and variance 0
    batches = list(make_images(32).double().split(split))
    peer = copy.deepcopy(network).train()
    peer.drop = torch.nn.Identity()  # which fvcore leaves on
    precise_bn.update_bn_stats(peer, batches, len(batches), None)
    found = one_pass(network, batches)
    assert set(found) == set(LAYERS)
    for name, estimate in found.items():
        layer = getattr(peer, name)
        shift = (estimate.mean - layer.running_mean) / estimate.variance.sqrt()
        assert float(shift.abs().max()) < 1e-10
        np.testing.assert_allclose(estimate.variance, layer.running_var, rtol=1e-10)
