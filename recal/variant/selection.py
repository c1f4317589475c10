"""Choosing layers by names, patterns, or their place in the forward pass."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from recal.errors import UsageError, did_you_mean, listed


def chosen_layers(wanted: str | Iterable[str], order: Sequence[str]) -> tuple[str, ...]:
    """Return the layers that names, patterns, `first` and `last` mean, in order of use.

    Args:
        wanted: Names of layers, patterns such as `layer4.*`, or `first` or `last` of the forward
            pass.
        order: Names of all layers, in the order in which a forward pass uses them.

    Raises:
        UsageError: There is no such layer.
    """
    ends = {"first": order[:1], "last": order[-1:]}
    chosen: set[str] = set()
    for word in (wanted,) if isinstance(wanted, str) else wanted:
        found = [name for name in order if fnmatchcase(name, word)] or ends.get(word, ())
        if not found:
            raise UsageError(
                f"--layers: expected names or patterns of layers, first or last, got '{word}'. The "
                f"layers are {listed(order, 5)}.{did_you_mean(word, order)}"
            )
        chosen.update(found)
    return tuple(name for name in order if name in chosen)
