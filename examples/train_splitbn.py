"""Train a small network with split BatchNorm: the recipe of recal's bundled checkpoints.

Every step sees the same images twice: under the weak policy, which trains the main BN, and under
the strong one, which trains the auxiliary BN; all other weights are shared (timm's split BN). One-cycle
SGD with Nesterov momentum. The run is seeded, shows its progress, and after an interruption the same
command goes on from the last whole epoch.

    python examples/train_splitbn.py --family sample --arch wrn10_1 --epochs 10 --seed 0 \
        --data /usr/share/datasets/fashion-mnist --output fashion_mnist_wrn10_1_splitbn.pth
    python examples/train_splitbn.py --family cifar --strong strong_noise --arch wrn16_1 \
        --epochs 16 --seed 1 --data CIFAR10 --output wrn16_1_splitbn_noise_cifar10.pth
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import click
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.layers import convert_splitbn_model
from torch import nn
from torch.nn import functional as F

from recal.architectures import create_network
from recal.data.layouts import open_images
from recal.data.loading import PolicyImages, load_batches, normalise, seeded_batches
from recal.data.policies import load_family, load_policy
from recal.errors import RecalError

BATCH = 128


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of images.")
@click.option("--family", default="sample", show_default=True, help="Family of the policies.")
@click.option("--weak", default="weak", show_default=True, help="Policy of the main BN.")
@click.option("--strong", default="strong", show_default=True, help="Policy of the auxiliary BN.")
@click.option("--arch", default="wrn10_1", show_default=True, help="Architecture.")
@click.option("--classes", default=10, show_default=True)
@click.option("--epochs", default=10, show_default=True)
@click.option("--lr", default=0.1, show_default=True, help="Peak learning rate.")
@click.option("--weight-decay", default=5e-4, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=1, show_default=True, help="Processes that augment.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Checkpoint.")
def main(  # noqa: PLR0913
    data: Path, family: str, weak: str, strong: str, arch: str, classes: int, epochs: int,
    lr: float, weight_decay: float, seed: int, workers: int, output: Path,
) -> None:  # fmt: skip
    """Train ARCH with split BatchNorm and write a checkpoint."""
    try:
        train(data, family, weak, strong, arch, classes, epochs, lr, weight_decay, seed, workers, output)
    except RecalError as error:
        raise click.ClickException(str(error)) from error


def train(
    data: Path, family_name: str, weak: str, strong: str, arch: str, classes: int, epochs: int,
    lr: float, weight_decay: float, seed: int, workers: int, output: Path,
) -> None:  # fmt: skip
    """Train from the start, or from the last whole epoch of an interrupted run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    family = load_family(family_name)
    policies = [load_policy(family_name, name) for name in (weak, strong)]
    train_images, test_images = open_images(data, "train"), open_images(data, "test")

    torch.manual_seed(seed)
    network = convert_splitbn_model(create_network(arch, classes), num_splits=2)
    network = network.to(device, memory_format=torch.channels_last)
    steps = math.ceil(len(train_images) / BATCH)
    optimizer = torch.optim.SGD(
        network.parameters(), lr, momentum=0.9, nesterov=True, weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)

    state_file = output.with_suffix(".state.pt")
    recipe = {"arch": arch, "family": family_name, "epochs": epochs, "lr": lr, "seed": seed,
              "weight_decay": weight_decay, "policies": [policy.text for policy in policies]}  # fmt: skip
    first_epoch = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["recipe"] != recipe:
            raise RecalError(f"{state_file}: belongs to another recipe. Remove it, or name another --output.")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first_epoch = state["epoch"] + 1
        click.echo(f"going on after epoch {first_epoch} of {epochs}")

    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(),
               TextColumn("loss {task.fields[loss]:.3f}"), TimeRemainingColumn())  # fmt: skip
    for epoch in range(first_epoch, epochs):
        # a new draw every epoch: draws are keyed by (seed, image), so the epoch goes into the seed
        epoch_seed = seed * 1_000_003 + epoch
        batches = seeded_batches(len(train_images), len(train_images), BATCH, epoch_seed)
        streams = [
            load_batches(PolicyImages(train_images, policy, epoch_seed, family.size), batches, workers)
            for policy in policies
        ]
        network.train()
        with Progress(*columns) as progress:
            task = progress.add_task("", total=steps, epoch=epoch + 1, loss=float("nan"))
            for batch, weak_images, strong_images in zip(batches, *streams, strict=True):
                labels = torch.from_numpy(train_images.labels[batch]).to(device)
                # split BN gives the first half of a batch to the main BN, the rest to the auxiliary
                images = normalise(torch.cat([weak_images, strong_images]), family.mean, family.std, device)
                logits = network(images.to(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits, labels.repeat(2))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update(task, advance=1, loss=loss.item())
        save(state_file, {"recipe": recipe, "epoch": epoch, "network": network.state_dict(),
                          "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()})  # fmt: skip
        accuracy = evaluate_main(network, PolicyImages(test_images, load_policy(family_name, "clean"), 0, family.size),
                                 test_images.labels, family, device)  # fmt: skip
        click.echo(f"epoch {epoch + 1}/{epochs}: main BN, clean test images: {accuracy:.2%}")
    weights = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    save(output, {"arch": arch, "epoch": epochs - 1, "state_dict": weights})
    state_file.unlink()
    click.echo(f"wrote {output}")


@torch.inference_mode()
def evaluate_main(network: nn.Module, images: PolicyImages, labels: np.ndarray, family, device) -> float:
    """Return the top-1 accuracy of the main BN, which timm's split BN uses in eval mode."""
    network.eval()
    batches = np.array_split(np.arange(len(images)), math.ceil(len(images) / 500))
    predictions = [
        network(normalise(batch, family.mean, family.std, device)).argmax(1).cpu()
        for batch in load_batches(images, batches, 0)
    ]
    return float((torch.cat(predictions).numpy() == labels).mean())


def save(path: Path, content: dict) -> None:
    """Write a checkpoint whole or not at all."""
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)  # noqa: PTH105


if __name__ == "__main__":
    main()
