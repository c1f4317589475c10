"""Compiling kernels with numba, wherever recal is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

    Kernel = TypeVar("Kernel", bound=Callable[..., object])


def compiled(kernel: Kernel) -> Kernel:
    """Compile a function when first called, keep the machine code on disk, release the GIL.

    numba contracts nothing and reassociates nothing without `fastmath`: a loop gives the same bits
    for the vectorised part and the remainder, so results do not depend on the size of a batch.
    """
    try:
        return numba.njit(kernel, nogil=True, cache=True, error_model="numpy")  # type: ignore[no-any-return]
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(kernel, nogil=True, error_model="numpy")  # type: ignore[no-any-return]
