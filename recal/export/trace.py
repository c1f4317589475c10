"""Tracing a network into an ONNX graph, with BatchNorm folded or kept as named tensors."""

import copy
import io
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import onnx
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from recal.errors import InputError, RecalWarning, UsageError, listed, reason
from recal.networks.quantised import simulating
from recal.onnx_file.editing import LEAVES, with_arrays
from recal.onnx_file.reading import LARGEST
from recal.onnx_file.record import OPSETS, GraphOptions
from recal.variant.independence import check_independence
from recal.variant.plain import statistics_owners

ANY_BATCH = GraphOptions()


def to_onnx(
    network: nn.Module,
    size: int,
    *,
    fold: bool,
    channels: int = 3,
    options: GraphOptions = ANY_BATCH,
) -> onnx.ModelProto:
    """Trace a network in eval mode.

    Args:
        network: Maps float32 (N, C, size, size) to logits (N, K); on the CPU, in eval mode.
        size: Side of the input in pixels.
        fold: Whether to fold every BatchNorm that follows a convolution into it. Otherwise all
            BatchNorm tensors stay initialisers under their plain names, such as
            `<layer>.running_mean`. No two of them are joined, even if they are equal.
        channels: Number of channels of the input, C.
        options: Operator set, number of images, and whether height and width are dynamic; input
            and output are floats here whatever `uint8` and `softmax` are.

    Returns:
        A model of one graph: `input` float32 (batch, C, size, size), `logits` float32 (batch, K).

    Raises:
        InputError: The network is in training mode, lacks statistics, or cannot be exported.
        UsageError: recal cannot write this opset.
    """
    _check_exportable(network, options.opset)
    check_independence(network, (channels, size, size), "export")
    traced = network
    if not fold:
        # the exporter joins equal tensors into one initialiser, such as the zero means of layers
        # that were never trained, which could not be replaced one by one then
        traced = copy.deepcopy(network)
        for number, tensor in enumerate(_batch_norm_tensors(traced).values()):
            tensor.fill_(0.1234 + number)
    batch = {0: "batch"} if options.batch is None else {}
    sides = {2: "height", 3: "width"} if options.any_size else {}
    dynamic = {"input": batch | sides, "logits": batch}
    example = torch.zeros(options.batch or 2, channels, size, size)
    try:
        content = _exported(traced, (example,), options.opset, fold=fold, dynamic=dynamic)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise InputError(
            f"export: {_find_culprit(network, example, options.opset)}: expected operations that "
            f"ONNX has, got {reason(error)}. Replace this module, or try another --opset."
        ) from error
    model = onnx.load_model_from_string(content)
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


def _exported(
    module: nn.Module,
    args: tuple[Any, ...],
    opset: int,
    *,
    kwargs: dict[str, Any] | None = None,
    fold: bool = True,
    dynamic: dict[str, dict[int, str]] | None = None,
) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # the tracing exporter is deprecated; docs/architecture.md says why it is used
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            args,
            buffer,  # type: ignore[arg-type]  # the tracing exporter writes to files too
            kwargs=kwargs,
            dynamo=False,
            input_names=["input"] if args else None,
            output_names=["logits"],
            dynamic_axes=dynamic,
            opset_version=opset,
            do_constant_folding=fold,
        )
    return buffer.getvalue()


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


@torch.inference_mode()
def _find_culprit(network: nn.Module, example: torch.Tensor, opset: int) -> str:
    """Return the path and class of the innermost module whose own export fails.

    The exporter names the operator but not its place. So every module is exported alone, on the
    input that it gets inside the network, children before parents.
    """
    modules, name = dict(network.named_modules()), ""
    try:
        inputs = _inputs(network, modules, example)
        for name in sorted(inputs, key=lambda name: -name.count(".") - bool(name)):
            args, kwargs = inputs[name]
            _exported(modules[name], args, opset, kwargs=kwargs)
    except Exception:  # noqa: BLE001  (a user's module may raise anything)
        return f"{name or 'the network'} ({type(modules[name]).__name__})"
    return type(network).__name__


def _check_exportable(network: nn.Module, opset: int) -> None:
    if opset not in OPSETS:
        raise UsageError(
            f"--opset: expected a number from {OPSETS[0]} to {OPSETS[-1]}, got {opset}."
        )
    size = sum(tensor.numel() * 4 for tensor in network.state_dict().values())
    if size > LARGEST:
        raise InputError(
            f"export: expected weights of less than 2 GiB, as much as one ONNX file holds, got "
            f"{size / (1 << 30):.1f} GiB. recal writes no external data; `recal eval --backend "
            "torch` and `recal convert` take such a network."
        )
    for name, module in simulating(network).items():
        raise InputError(
            f"export: {name} ({type(module).__name__}): expected a network without the simulated "
            "integers of quantisation-aware training, which recal does not write to ONNX. Evaluate "
            "it with --backend torch. To deploy it, write the variant as a checkpoint (recal "
            "convert), load that into your network, and convert it with torch.ao.quantization."
        )
    for name, module in network.named_modules():
        if module.training:
            raise InputError(
                f"export: expected a network in eval mode, got {name or 'all of it'} in training "
                "mode. Call .eval() first."
            )
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


def _use_plain_names(model: onnx.ModelProto, network: nn.Module) -> None:
    """Rename BatchNorm initialisers to the checkpoint's plain names where these differ."""
    plain = {id(layer): name for name, layer in statistics_owners(network).items()}
    renamed = {
        f"{path}.{leaf}": f"{plain[id(module)]}.{leaf}"
        for path, module in network.named_modules(remove_duplicate=False)
        if plain.get(id(module), path) != path
        for leaf in module.state_dict()
    }
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
