"""Train a small network with split BatchNorm: the recipe of recal's bundled checkpoints.

Each step uses the same images twice: under the weak policy for the main BN, and under the strong
policy for the auxiliary BN. All other weights are shared (timm's split BN). The optimizer is SGD
with Nesterov momentum and a one-cycle schedule. Training is seeded, and after an interruption the
same command resumes after the last complete epoch.

    python examples/train_splitbn.py --family sample --arch wrn10_1 --epochs 10 --seed 0 \
        --data /usr/share/datasets/fashion-mnist --output fashion_mnist_wrn10_1_splitbn.pth
    python examples/train_splitbn.py --family cifar --strong strong_noise --arch wrn16_1 \
        --epochs 16 --seed 1 --data CIFAR10 --output wrn16_1_splitbn_noise_cifar10.pth
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.layers import convert_splitbn_model
from torch import nn
from torch.nn import functional as F

from recal.data.batches import Batches
from recal.data.folders import open_images
from recal.data.normalise import normalise
from recal.data.sampling import seeded_batches
from recal.errors import RecalError
from recal.networks.names import create_network
from recal.policies.families import Family, load_family
from recal.policies.policy import Policy, load_policy
from recal.policies.prepared import PreparedTogether

BATCH = 128
COLUMNS = (
    TextColumn("epoch {task.fields[epoch]}"),
    BarColumn(),
    MofNCompleteColumn(),
    TextColumn("loss {task.fields[loss]:.3f}"),
    TimeRemainingColumn(),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings that determine the weights, except for the data."""

    arch: str
    family: Family
    weak: Policy
    strong: Policy
    epochs: int
    lr: float
    weight_decay: float
    seed: int

    def facts(self) -> dict[str, object]:
        """Return the recipe as plain values for the checkpoint."""
        return {
            "arch": self.arch,
            "family": self.family.name,
            "epochs": self.epochs,
            "lr": self.lr,
            "seed": self.seed,
            "weight_decay": self.weight_decay,
            "policies": [self.weak.text, self.strong.text],
        }


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="Folder of training images."
)
@click.option("--family", default="sample", show_default=True, help="Family of the policies.")
@click.option("--weak", default="weak", show_default=True, help="Policy of the main BN.")
@click.option("--strong", default="strong", show_default=True, help="Policy of the auxiliary BN.")
@click.option("--arch", default="wrn10_1", show_default=True, help="Architecture.")
@click.option("--epochs", default=10, show_default=True)
@click.option("--lr", default=0.1, show_default=True, help="Peak learning rate.")
@click.option("--weight-decay", default=5e-4, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=1, show_default=True, help="Worker processes for each policy.")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="Checkpoint to write."
)
def main(
    data: Path, family: str, weak: str, strong: str, workers: int, output: Path, **rest: object
) -> None:
    """Train a network with split BatchNorm and write a checkpoint."""
    try:
        recipe = Recipe(
            family=load_family(family),
            weak=load_policy(family, weak),
            strong=load_policy(family, strong),
            **rest,
        )
        train(recipe, data, workers, output)
    except RecalError as error:
        raise click.ClickException(str(error)) from error


class Training:
    """The state of a run: network, optimizer, schedule, and the last complete epoch."""

    def __init__(self, recipe: Recipe, classes: int, steps: int, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        network = convert_splitbn_model(create_network(recipe.arch, classes), num_splits=2)
        self.network = network.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            recipe.lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=recipe.weight_decay,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, recipe.lr, total_steps=recipe.epochs * steps
        )
        self.epoch = -1

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Take one step on weak and strong images and return the loss."""
        # split BN passes the first half of a batch to the main BN and the rest to the auxiliary BN
        logits = self.network(images.to(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels.repeat(2))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def save(self, path: Path) -> None:
        """Write everything that is needed to resume."""
        state = {name: getattr(self, name).state_dict() for name in self.parts}
        save(path, {"recipe": self.recipe.facts(), "epoch": self.epoch, **state})

    def restore(self, path: Path) -> None:
        """Restore the state that `save` wrote."""
        state = torch.load(path, weights_only=True)
        if state["recipe"] != self.recipe.facts():
            raise RecalError(
                f"{path}: belongs to another recipe. Remove it, or name another --output."
            )
        for name in self.parts:
            getattr(self, name).load_state_dict(state[name])
        self.epoch = state["epoch"]

    parts = ("network", "optimizer", "schedule")


def train(recipe: Recipe, data: Path, workers: int, output: Path) -> None:
    """Train from the start, or from the last complete epoch of an interrupted run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, test_images = open_images(data, "train"), open_images(data, "test")
    steps = math.ceil(len(images) / BATCH)
    training = Training(recipe, int(images.labels.max()) + 1, steps, device)
    state_file = output.with_suffix(".state.pt")
    if state_file.exists():
        training.restore(state_file)
        click.echo(f"going on after epoch {training.epoch + 1} of {recipe.epochs}")

    family = recipe.family
    for epoch in range(training.epoch + 1, recipe.epochs):
        # draws are keyed by (seed, image), so the epoch is part of the seed
        seed = recipe.seed * 1_000_003 + epoch
        batches = seeded_batches(len(images), len(images), BATCH, seed)
        both = PreparedTogether(images, [recipe.weak, recipe.strong], seed, family.preparation)
        stream = Batches(both, batches, workers=workers)
        training.network.train()
        with Progress(*COLUMNS) as progress:
            task = progress.add_task("", total=steps, epoch=epoch + 1, loss=float("nan"))
            for batch, (weak, strong) in zip(batches, stream, strict=True):
                inputs = normalise(torch.cat([weak, strong]), family.normalisation, device)
                loss = training.step(inputs, torch.from_numpy(images.labels[batch]).to(device))
                progress.update(task, advance=1, loss=loss)
        training.epoch = epoch
        training.save(state_file)
        policies = [load_policy(family.name, "clean")]
        clean = PreparedTogether(test_images, policies, 0, family.preparation)
        accuracy = main_accuracy(training.network, clean, family, device)
        click.echo(f"epoch {epoch + 1}/{recipe.epochs}: main BN, clean test images: {accuracy:.2%}")

    weights = {k: v.cpu().contiguous() for k, v in training.network.state_dict().items()}
    save(output, {"arch": recipe.arch, "family": family.name, "state_dict": weights})
    state_file.unlink()
    click.echo(f"wrote {output}")


@torch.inference_mode()
def main_accuracy(
    network: nn.Module, images: PreparedTogether, family: Family, device: torch.device
) -> float:
    """Return the top-1 accuracy of the main BN, which timm's split BN uses in eval mode."""
    network.eval()
    batches = np.array_split(np.arange(len(images)), math.ceil(len(images) / 500))
    predictions = [
        network(normalise(batch, family.normalisation, device)).argmax(1).cpu()
        for (batch,) in Batches(images, batches)
    ]
    return float((torch.cat(predictions).numpy() == images.source.labels).mean())


def save(path: Path, content: dict) -> None:
    """Write a checkpoint completely or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)  # noqa: PTH105


if __name__ == "__main__":
    main()
