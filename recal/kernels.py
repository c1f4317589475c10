"""Compiling kernels with numba."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

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
