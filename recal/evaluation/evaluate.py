"""Evaluating networks: a module on batches, or targets over a suite into the folder of a run."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import msgspec
import numpy as np
import torch
from torch import nn

from recal.calibration.hooks import device_of
from recal.checkpoint.checkpoint import Checkpoint
from recal.checkpoint.layouts import Layout, ReadingOptions
from recal.data.normalise import ChannelOrder
from recal.data.remote import local_data
from recal.distributed import ALONE, Part, World
from recal.errors import InputError, UsageError
from recal.evaluation.adaptation import Adaptation
from recal.evaluation.cells import OnCell, Work, compute_cells, drop_cell
from recal.evaluation.execution import ExecutionOptions
from recal.evaluation.parts import compute_part, refuse_parts_at_work
from recal.evaluation.prepare import EvaluationRequest, prepare_work
from recal.evaluation.targets import Given
from recal.files import locked
from recal.networks.calling import logits_place
from recal.networks.feeding import AsAssumed
from recal.networks.spec import ModelOverrides
from recal.progress import Progress, silent
from recal.runs.metrics import Metrics, metrics_of, score
from recal.runs.parts import cells_left
from recal.runs.store import open_run, remove_partial_cells, write_record
from recal.runs.summary import Summary, finish_parts, finish_run
from recal.schema import convert
from recal.suites.suite import Suite
from recal.variant.variant import Variant


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished evaluation; it can be given wherever the folder of a run can.

    Attributes:
        folder: The folder with its cells and summaries.
        summary: Every metric of the run; without rows in processes that do not lead.
        failures: Why single cells failed, one line each; all others are complete.
        left: Names of the cells that other parts have not done yet; the summary is empty as long as
            there are any.
    """

    folder: Path
    summary: Summary = field(repr=False)
    failures: tuple[str, ...]
    left: tuple[str, ...] = ()

    def __fspath__(self) -> str:
        """Return the folder."""
        return str(self.folder)


@overload
def evaluate(module: nn.Module, batches: Iterable[Sequence[torch.Tensor]], /) -> Metrics: ...


@overload
def evaluate(
    targets: Given | Sequence[Given],
    /,
    *,
    suite: str | Suite | None = ...,
    data: str | Path | None = ...,
    output: str | Path | None = ...,
    checkpoint: str | Path | Checkpoint | None = ...,
    corruptions: Sequence[str] = ...,
    severities: Sequence[int] = ...,
    attacked: Sequence[str] = ...,
    limit: int | None = ...,
    seed: int = ...,
    batch_size: int | None = ...,
    threads: int | None = ...,
    autocast: torch.dtype | None = ...,
    device: str = ...,
    backend: str = ...,
    adaptation: Adaptation | None = ...,
    part: str | None = ...,
    layout: str | Layout | None = ...,
    roles: str | Mapping[str, int] | None = ...,
    ema: bool = ...,
    prefix: str | None = ...,
    arch: str | None = ...,
    classes: int | None = ...,
    family: str | None = ...,
    mean: Sequence[float] | AsAssumed | None = ...,
    std: Sequence[float] | None = ...,
    size: int | None = ...,
    bn_act: bool | None = ...,
    crop_share: float | None = ...,
    interpolation: str | None = ...,
    crop_mode: str | None = ...,
    policy: str | None = ...,
    channels: int | None = ...,
    channel_order: ChannelOrder | None = ...,
    progress: Progress = ...,
    on_cell: OnCell = ...,
    world: World = ...,
) -> Run: ...


def evaluate(
    source: nn.Module | Given | Sequence[Given],
    batches: Iterable[Sequence[torch.Tensor]] | None = None,
    /,
    *,
    suite: str | Suite | None = None,
    data: str | Path | None = None,
    output: str | Path | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = (),
    attacked: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    threads: int | None = None,
    autocast: torch.dtype | None = None,
    device: str = "cpu",
    backend: str = "auto",
    adaptation: Adaptation | None = None,
    part: str | None = None,
    layout: str | Layout | None = None,
    roles: str | Mapping[str, int] | None = None,
    ema: bool = False,
    prefix: str | None = None,
    arch: str | None = None,
    classes: int | None = None,
    family: str | None = None,
    mean: Sequence[float] | AsAssumed | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
    bn_act: bool | None = None,
    crop_share: float | None = None,
    interpolation: str | None = None,
    crop_mode: str | None = None,
    policy: str | None = None,
    channels: int | None = None,
    channel_order: ChannelOrder | None = None,
    progress: Progress = silent,
    on_cell: OnCell = drop_cell,
    world: World = ALONE,
) -> Metrics | Run:
    """Evaluate networks.

    With a module and batches, returns the metrics over all images. The module's mode is restored
    afterwards. The other arguments do not apply.

    With targets, evaluates them over a suite into the folder of a run. Cells that the folder
    already has for the same weights, data, suite and preprocessing are not computed again. Targets
    with equal tensors and preprocessing are computed once.

    Args:
        source: A module, or targets: each `CHECKPOINT`, `CHECKPOINT:BRANCH`, a branch of
            `checkpoint`, a variant file, an .onnx file, or in memory a `Checkpoint` (its main
            branch) or `Variant`. An empty sequence stands for every branch of `checkpoint`.
        batches: With a module, pairs of normalised images, float32 (N, C, H, W), and labels, int64
            (N,).
        suite: Name of a suite, a .toml file or a `Suite`; by default the clean one of the network's
            family.
        data: Folder or file of the images; by default the usual places are searched.
        output: Folder of the run; by default `runs/<suite>-<hash of the request>`.
        checkpoint: Where branches without a file, and weights of variants, are found.
        corruptions: Only these corruptions of the suite.
        severities: Only these severities.
        attacked: Names or labels of the targets that a suite of attacks attacks; by default all.
            Every target predicts the images of every attack.
        limit: Number of images in a seeded, stratified sample; by default all images.
        seed: Seed of that sample and of corruptions made on the fly.
        batch_size: Number of images in a batch; by default chosen by the size of the images.
        threads: Threads of this process; by default its share of the machine's cores.
        autocast: Reduced precision for the operations that torch lists as safe.
        device: Device of PyTorch.
        backend: `auto`, `onnxruntime` or `torch`.
        adaptation: How statistics are taken from the test images of each cell.
        part: Part of the cells to evaluate, such as `3/16`; jobs on any machines that share the
            folder can do the others. The last one writes the summary.
        layout: How checkpoints spell their branches, as for `load_checkpoint`.
        roles: Which position is which branch, as for `load_checkpoint`.
        ema: Whether to take the moving average of the weights of checkpoints.
        prefix: What the names of the network's tensors begin with, as for `load_checkpoint`.
        arch: Architecture, if other than the files say.
        classes: Number of classes, if other than the files say.
        family: Family of policies, if other than the files say.
        mean: Mean of each channel of images in [0, 1], if other than the files say; or
            `as-assumed` to use what recal assumes, even if the images show that it does not fit.
        std: Standard deviation of each channel, if other than the files say.
        size: Side of the input in pixels, if other than the files say.
        bn_act: Whether BatchNorm layers apply the activation that timm's `BatchNormAct2d` carries.
        crop_share: Share of the resized side that the crop keeps, if other than the files say.
        interpolation: Filter of resizing, if other than the files say.
        crop_mode: `center`, `squash`, `border` or `none`, if other than the files say.
        policy: Text of a policy without random ops that prepares test images.
        channels: Number of channels of the images, if other than the files say.
        channel_order: Order of the channels in the networks' input, `rgb` or `bgr`.
        progress: Called with images of cells done and in total.
        on_cell: Called with each cell that is done and its columns by target name.
        world: The processes that share the work; only the leading one writes files.

    Raises:
        UsageError: An unknown suite, corruption, severity, backend or target.
        InputError: A file or folder is not what it should be; nothing has been computed then.
        RecalError: Every cell failed, or the folder cannot be written.
    """
    if isinstance(source, nn.Module):
        return _evaluate_module(source, batches or ())
    if batches is not None:
        raise TypeError(f"expected a module with batches, got {type(source).__name__}")
    overrides = {
        "arch": arch, "classes": classes, "family": family, "mean": mean, "std": std, "size": size,
        "bn_act": bn_act, "crop_share": crop_share, "interpolation": interpolation,
        "crop_mode": crop_mode, "policy": policy, "channels": channels,
        "channel_order": channel_order,
    }  # fmt: skip
    request = EvaluationRequest(
        suite=suite,
        data=None if data is None else local_data(data),
        output=None if output is None else Path(output),
        checkpoint=Path(checkpoint) if isinstance(checkpoint, str) else checkpoint,
        corruptions=corruptions,
        severities=severities,
        attacked=attacked,
        limit=limit,
        seed=seed,
        part=None if part is None else Part.parse(part),
        execution=ExecutionOptions(
            backend=backend,
            device=device,
            batch_size=batch_size,
            threads=threads,
            autocast=autocast,
            adaptation=adaptation,
        ),
        reading=ReadingOptions(
            layout=layout,
            roles=roles,
            ema=ema,
            prefix=prefix,
            model=convert(overrides, ModelOverrides, "evaluate"),
        ),
    )
    one = isinstance(source, (str, Path, Checkpoint, Variant))
    given: Sequence[Given] = [source] if one else list(source)  # type: ignore[list-item, arg-type]
    return run_evaluation(given, request, progress=progress, on_cell=on_cell, world=world)


def run_evaluation(
    given: Sequence[Given],
    request: EvaluationRequest,
    *,
    progress: Progress = silent,
    on_cell: OnCell = drop_cell,
    world: World = ALONE,
) -> Run:
    """Evaluate targets as `evaluate` does, with most of its arguments as one object."""
    adaptation = request.execution.adaptation
    if adaptation and adaptation.kind != "batch" and world.size > 1:
        raise UsageError(
            f"--adapt {adaptation.kind}: expected one process, got {world.size}. Its statistics "
            "are not those of one batch."
        )
    if adaptation and adaptation.continual and request.part:
        raise UsageError(
            "--continual: expected no --part, got one. Its cells follow each other: they are one "
            "job."
        )
    work = prepare_work(given, request)
    record = work.record
    if request.part is not None:
        compute_part(work, request.part, progress=progress, on_cell=on_cell, world=world)
        return _after_part(work, world)
    summary = Summary(suite=record.suite, title=record.title, provenance=record.provenance)
    with locked(work.folder) if world.leads else nullcontext():
        if world.leads:
            refuse_parts_at_work(work.folder)
            remove_partial_cells(work.folder)
            write_record(work.folder, record)
        outcome = compute_cells(work, progress=progress, on_cell=on_cell, world=world)
        if world.leads:
            held = {name: tuple(cells) for name, cells in outcome.held.items()}
            write_record(work.folder, msgspec.structs.replace(record, held=held))
            summary = finish_run(
                work.folder, execution=work.execution.describe(), warnings=work.images.warnings
            )
    return Run(folder=work.folder, summary=summary, failures=tuple(outcome.failures))


def _after_part(work: Work, world: World) -> Run:
    """Return the run after a part of it: with its summary if no other part is missing."""
    record = work.record
    summary = Summary(suite=record.suite, title=record.title, provenance=record.provenance)
    if not world.leads:
        return Run(folder=work.folder, summary=summary, failures=())
    saved = open_run(work.folder)
    left = tuple(cells_left(record.cells, saved.parts))
    return Run(
        folder=work.folder,
        summary=summary if left else finish_parts(saved),
        failures=tuple(text for part in saved.parts for text in part.failures),
        left=left,
    )


@torch.inference_mode()
def _evaluate_module(module: nn.Module, batches: Iterable[Sequence[torch.Tensor]]) -> Metrics:
    training, device = {m: m.training for m in module.modules()}, device_of([module])
    module.eval()
    try:
        scored = []
        for images, labels in batches:
            output = module(images.to(device))
            place = logits_place(output, None, "evaluate")
            logits = output if place is None else place[0](output)
            scored.append(score(logits.float().cpu().numpy(), labels.cpu().numpy()))
    finally:
        for m, mode in training.items():
            m.training = mode
    if not scored:
        raise InputError("evaluate: expected at least one batch, got none.")
    return metrics_of({name: np.concatenate([s[name] for s in scored]) for name in scored[0]})
