"""Compiling kernels with numba, and the types of their arrays."""

from collections.abc import Callable
from typing import TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Kernel = TypeVar("Kernel", bound=Callable[..., object])


def compiled(kernel: Kernel) -> Kernel:
    """Compile a function at its first call, cache the machine code on disk, and release the GIL.

    Without `fastmath`, numba neither contracts nor reassociates operations: a loop gives the same
    bits in its vectorised part and its remainder, so results do not depend on the batch size.
    """
    try:
        return numba.njit(kernel, nogil=True, cache=True, error_model="numpy")  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(kernel, nogil=True, error_model="numpy")  # type: ignore[no-any-return]
