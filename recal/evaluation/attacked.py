"""Cells of adversarial images: which network is attacked, and how."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from recal.attacks.attack import AnyAttack, AutoAttack
from recal.attacks.autoattack import check_autoattack
from recal.attacks.gradient import normalised
from recal.data.normalise import Normalisation, normalise
from recal.errors import UsageError, listed
from recal.evaluation.execution import Batch, ExecutionOptions
from recal.evaluation.targets import OnnxTarget, Target
from recal.runs.store import AttackedCell
from recal.schema import to_json
from recal.suites.suite import Cell, Suite

CLEAN = Cell(None, None)
# RGB images in [0, 1]
UNCHANGED = Normalisation((0.0,) * 3, (1.0,) * 3)
UNNAMEABLE = re.compile(r"[^\w.-]", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """The attack of a cell and the network that it is on; every target predicts its images.

    Attributes:
        name: The attack's name in the suite.
        target: The network that is attacked.
        seed: Seed of the attack's random draws.
    """

    name: str
    attack: AnyAttack
    target: Target
    seed: int

    @property
    def identity(self) -> str:
        """What the images depend on, apart from the clean ones and the execution."""
        return f"{to_json(self.attack)} {self.seed} {self.target.sha256}"

    def record(self, cell: Cell) -> AttackedCell:
        """Return what the run's record says of the cell."""
        text = f"{self.attack.text}, seed {self.seed}"
        return AttackedCell(cell=cell.name, attack=text, target=self.target.name)


def attacked_cells(
    suite: Suite, targets: Sequence[Target], chosen: Sequence[str], seed: int
) -> dict[Cell, Attacked]:
    """Return the cells of a suite's attacks on some targets, in the order of tables.

    Args:
        suite: The suite.
        targets: All targets, each of which predicts the images of every cell.
        chosen: Names or labels of the targets that are attacked; empty for all.
        seed: Seed of the attacks' random draws.

    Raises:
        UsageError: A target is not known, or is an ONNX file, which has no gradients; or the suite
            has no attacks.
        InputError: A package is missing.
    """
    if not suite.attack:
        if chosen:
            raise UsageError(f"--attacked: expected a suite of attacks, got {suite.name}.")
        return {}
    for target in targets:
        if isinstance(target, OnnxTarget):
            raise UsageError(
                f"{target.name}: expected a checkpoint or variant for suite {suite.name}, whose "
                "attacks need gradients, got an ONNX file. Give the checkpoint that it was "
                "exported from."
            )
    if any(isinstance(attack, AutoAttack) for attack in suite.attack.values()):
        check_autoattack()
    known = {t.name: t for t in targets} | {t.label: t for t in targets}
    for name in chosen:
        if name not in known:
            labels = ", ".join(target.label for target in targets)
            raise UsageError(f"--attacked: expected some of the targets ({labels}), got {name}.")
    attacked = [known[name] for name in dict.fromkeys(chosen)] or targets
    names = [UNNAMEABLE.sub("_", target.label)[:60] for target in attacked]
    twice = listed(sorted({name for name in names if names.count(name) > 1}))
    if twice:
        raise UsageError(f"targets: expected labels that differ as names of files, got {twice}.")
    return {
        Cell(f"{name}.{label}", 1): Attacked(name=name, attack=attack, target=target, seed=seed)
        for name, attack in suite.attack.items()
        for target, label in zip(attacked, names, strict=True)
    }


def check_options(suite: Suite, options: ExecutionOptions) -> None:
    """Refuse options that attacks do not go with.

    Raises:
        UsageError: The backend has no gradients, or the numbers would be of another network.
    """
    for option, given in (
        ("--backend onnxruntime", options.backend == "onnxruntime"),
        ("--adapt", options.adaptation is not None),
        ("--autocast", options.autocast is not None),
    ):
        if given:
            raise UsageError(
                f"{option}: expected a suite without attacks, got {suite.name}, whose attacks need "
                "gradients of the network as it is, by PyTorch in float32."
            )


class AttackedBatch(Batch):
    """Adversarial images in place of clean ones, made when the first network asks for them.

    Args:
        clean: The clean images.
        attack: Function from clean images in [0, 1], (N, 3, H, W), to adversarial ones.
        device: Device of the networks.
    """

    def __init__(
        self,
        clean: Batch,
        attack: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
    ) -> None:
        super().__init__(clean.pixels)
        self._attack, self._device = attack, device
        self._adversarial: torch.Tensor | None = None

    def on_device(self, how: Normalisation, device: torch.device) -> torch.Tensor:
        """Return the normalised adversarial images on a device."""
        if self._adversarial is None:
            with torch.inference_mode(False):  # whose tensors have no gradients
                pixels = torch.from_numpy(self.pixels)
                clean = normalise(pixels, UNCHANGED, self._device).contiguous()
                self._adversarial = self._attack(clean).detach()
        return normalised(self._adversarial.to(device), how)
