"""Turning a network into an ONNX graph, folded or with its BatchNorm tensors still by name."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import onnx
import torch

from recal.errors import InputError

if TYPE_CHECKING:
    from torch import nn

OPSET = 18


def to_onnx(network: nn.Module, size: int, *, fold: bool) -> onnx.ModelProto:
    """Trace a network in eval mode.

    Args:
        network: Maps float32 (N, 3, size, size) to logits (N, K); on the CPU, in eval mode.
        size: Side of the input in pixels.
        fold: Fold every BatchNorm that follows a convolution into it. Otherwise all BatchNorm
            tensors stay initialisers under the names of the network's state_dict.

    Returns:
        A model of one graph: `input` float32 (batch, 3, size, size), `logits` float32 (batch, K).

    Raises:
        InputError: The network is in training mode or has an operation that cannot be exported.
    """
    training = [name for name, module in network.named_modules() if module.training]
    if training:
        raise InputError(
            f"export: expected a network in eval mode, got {training[0] or 'all of it'} in "
            "training mode. Call .eval() first."
        )
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # The tracing exporter is deprecated, and chosen with open eyes: docs/architecture.md
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (torch.zeros(2, 3, size, size),),
                buffer,  # type: ignore[arg-type]  # the tracing exporter writes to files too
                dynamo=False,
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
                opset_version=OPSET,
                do_constant_folding=fold,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"export: the network cannot be written as ONNX: {reason}") from error
    return onnx.load_from_string(buffer.getvalue())


def with_tensors(model: onnx.ModelProto, tensors: dict[str, torch.Tensor]) -> onnx.ModelProto:
    """Return a copy of an unfolded model with these initialisers replaced by name.

    Raises:
        InputError: The model has no initialiser of a name, or one of another shape.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    initialisers = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name, tensor in tensors.items():
        target = initialisers.get(name)
        if target is None or tuple(target.dims) != tuple(tensor.shape):
            raise InputError(
                f"ONNX graph: expected an initialiser '{name}' of {tuple(tensor.shape)}."
            )
        target.CopyFrom(onnx.numpy_helper.from_array(tensor.float().cpu().numpy(), name))
    return copy
