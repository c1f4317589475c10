"""Networks of quantisation-aware training, as `torch.ao.quantization.prepare_qat` makes them.

Their modules round weights and activations to simulated integers, in ranges that they observe.
"""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

# name of a buffer of modules that simulate integers, in networks and in files
SIMULATES = "fake_quant_enabled"


def simulating(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that simulate integers, by path."""
    return {path: m for path, m in network.named_modules() if SIMULATES in m._buffers}


def resized_buffers(network: nn.Module) -> set[str]:
    """Return the names of buffers that take any shape from a state_dict, as those of observers do.

    They belong to modules that load their state in a way of their own.
    """
    return {
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        if type(module)._load_from_state_dict is not nn.Module._load_from_state_dict
        and not isinstance(module, _NormBase)
        for name in module._buffers
    }


def stop_observing(network: nn.Module) -> None:
    """Keep the ranges of simulated integers as they are, in place.

    Observers that are switched on change them in eval mode, too, so that the outputs for images
    would depend on the images before them.
    """
    for module in simulating(network).values():
        observing = module._buffers.get("observer_enabled")
        if isinstance(observing, torch.Tensor):
            observing.zero_()
