"""Tracing a network into an ONNX graph, with BatchNorm folded or kept as named tensors."""

from __future__ import annotations

import copy
import io
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from recal.errors import InputError, RecalWarning, UsageError, listed, reason
from recal.onnx_file.editing import LEAVES, with_arrays
from recal.onnx_file.record import OPSET, OPSETS
from recal.variant.plain import statistics_owners

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn


@torch.inference_mode()
def find_culprit(network: nn.Module, example: torch.Tensor, opset: int) -> str:
    """Return the path and class of the innermost module whose own export fails.

    The exporter names the operator but not its place. So every module is exported alone, on the
    input that it gets inside the network, children before parents.
    """
    modules = dict(network.named_modules())
    try:
        inputs = _inputs(network, modules, example)
    except Exception:  # noqa: BLE001  (the search goes on whatever a user's module raises)
        return type(network).__name__
    for name in sorted(inputs, key=lambda name: -name.count(".") - bool(name)):
        if not _exports(modules[name], *inputs[name], opset):
            return f"{name or 'the network'} ({type(modules[name]).__name__})"
    return type(network).__name__


@torch.inference_mode()
def _inputs(
    network: nn.Module, modules: Mapping[str, nn.Module], example: torch.Tensor
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return the arguments of the first call of each module that an example reaches."""
    inputs: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.setdefault(name, (args, kwargs))

    hooks = [
        module.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return inputs


def _exports(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], opset: int) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                args,
                io.BytesIO(),  # type: ignore[arg-type]  # the tracing exporter writes to files too
                kwargs=kwargs,
                dynamo=False,
                opset_version=opset,
            )
    except Exception:  # noqa: BLE001  (see above)
        return False
    return True


def to_onnx(
    network: nn.Module,
    size: int,
    *,
    fold: bool,
    opset: int = OPSET,
    batch: int | None = None,
    any_size: bool = False,
) -> onnx.ModelProto:
    """Trace a network in eval mode.

    Args:
        network: A network from float32 (N, 3, size, size) to logits (N, K); on the CPU, in eval
            mode.
        size: Side of the input in pixels.
        fold: Whether to fold every BatchNorm that follows a convolution into it. Otherwise all
            BatchNorm tensors stay initialisers under their plain names, such as
            `<layer>.running_mean`. No two of them are joined, even if they are equal.
        opset: ONNX operator set.
        batch: A fixed number of images, or None for a dynamic dimension `batch`.
        any_size: Whether height and width are dynamic dimensions `height` and `width`.

    Returns:
        A model of one graph: `input` float32 (batch, 3, size, size), `logits` float32 (batch, K).

    Raises:
        InputError: The network is in training mode, has a BatchNorm without statistics, or an
            operation that cannot be exported.
        UsageError: recal cannot write this opset.
    """
    _check_exportable(network, opset)
    traced = network if fold else _with_distinct_tensors(network)
    dynamic: dict[str, dict[int, str]] = {"input": {}, "logits": {}}
    if batch is None:
        dynamic["input"][0] = dynamic["logits"][0] = "batch"
    if any_size:
        dynamic["input"] |= {2: "height", 3: "width"}
    example = torch.zeros(batch or 2, 3, size, size)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # the tracing exporter is deprecated; docs/architecture.md says why it is used
            warnings.simplefilter("ignore")
            torch.onnx.export(
                traced,
                (example,),
                buffer,  # type: ignore[arg-type]  # the tracing exporter writes to files too
                dynamo=False,
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes=dynamic,
                opset_version=opset,
                do_constant_folding=fold,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise InputError(
            f"export: {find_culprit(network, example, opset)}: expected operations that ONNX has, "
            f"got {reason(error)}. Replace this module, or try another --opset."
        ) from error
    model = onnx.load_model_from_string(buffer.getvalue())
    _use_plain_names(model, traced)
    if fold:
        return model
    owners = statistics_owners(network)
    unused = sorted(owners.keys() - _inputs(network, owners, example).keys())
    if unused:
        warnings.warn(
            f"export: the network's forward pass never uses {listed(unused)}. The graph leaves "
            "these BatchNorm layers out.",
            RecalWarning,
            stacklevel=2,
        )
    tensors = _batch_norm_tensors(network, leave_out=unused)
    return with_arrays(model, {name: t.float().cpu().numpy() for name, t in tensors.items()})


def _check_exportable(network: nn.Module, opset: int) -> None:
    if opset not in OPSETS:
        raise UsageError(
            f"--opset: expected a number from {OPSETS[0]} to {OPSETS[-1]}, got {opset}."
        )
    training = [name for name, module in network.named_modules() if module.training]
    if training:
        raise InputError(
            f"export: expected a network in eval mode, got {training[0] or 'all of it'} in "
            "training mode. Call .eval() first."
        )
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise InputError(
                f"export: {name}: expected a BatchNorm with running statistics, got one without: "
                "its output would depend on which images share a batch. Calibrate it first."
            )


def _batch_norm_tensors(
    network: nn.Module, leave_out: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{leaf}": tensor
        for name, layer in statistics_owners(network).items()
        for leaf, tensor in layer.state_dict().items()
        if leaf in LEAVES and name not in leave_out
    }


def _with_distinct_tensors(network: nn.Module) -> nn.Module:
    """Return a copy in which no BatchNorm tensor equals another one.

    The exporter joins equal tensors into one initialiser, such as the zero means of layers that
    were never trained. They could not be replaced one by one then.
    """
    distinct = copy.deepcopy(network)
    for number, tensor in enumerate(_batch_norm_tensors(distinct).values()):
        tensor.fill_(0.1234 + number)
    return distinct


def _use_plain_names(model: onnx.ModelProto, network: nn.Module) -> None:
    """Rename BatchNorm initialisers to the checkpoint's plain names where these differ."""
    plain = {id(layer): name for name, layer in statistics_owners(network).items()}
    renamed = {}
    for path, module in network.named_modules(remove_duplicate=False):
        if id(module) in plain and plain[id(module)] != path:
            for leaf in module.state_dict():
                renamed[f"{path}.{leaf}"] = f"{plain[id(module)]}.{leaf}"
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
