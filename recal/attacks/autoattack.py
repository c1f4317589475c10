"""AutoAttack, by the package pyautoattack, which robustbench installs, too."""

import torch
from torch import nn

from recal.attacks.attack import LEVELS, AutoAttack
from recal.attacks.gradient import Logits
from recal.data.sampling import undisturbed_draws
from recal.errors import InputError

NAMES = {"linf": "Linf", "l2": "L2"}


class _Module(nn.Module):
    def __init__(self, logits: Logits) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._logits(images)


def check_autoattack() -> None:
    """Raise an InputError if the package is not installed."""
    try:
        import pyautoattack  # noqa: F401
    except ImportError as error:
        raise InputError(
            "AutoAttack: expected the package pyautoattack, got none. Install it with "
            "`pip install 'recal-bn[autoattack]'`, or evaluate a suite of PGD."
        ) from error


def autoattack_images(
    logits: Logits, images: torch.Tensor, labels: torch.Tensor, attack: AutoAttack, seed: int
) -> torch.Tensor:
    """Return images under AutoAttack, float32 (N, 3, H, W) in [0, 1]; one batch is one call of it.

    The arguments are those of `attack_images`. The global random generators are restored.
    """
    check_autoattack()
    from pyautoattack import AutoAttack as Ensemble

    devices = [images.device] if images.device.type == "cuda" else []
    with (
        undisturbed_draws(),
        torch.random.fork_rng(devices),
        torch.enable_grad(),
    ):
        ensemble = Ensemble(
            _Module(logits),
            norm=NAMES[attack.norm],
            eps=attack.radius / LEVELS,
            seed=seed,
            device=images.device,
        )
        ensemble.attacks_to_run = list(attack.attacks)
        found, _ = ensemble.run_standard_evaluation(images.clone(), labels, batch_size=len(images))
    return found.to(images)  # type: ignore[no-any-return]
