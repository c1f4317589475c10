"""Importing a user's file together with the modules beside it, as Python itself would run it."""

import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# names and files of the modules that were imported from users' folders
_imported: dict[str, str] = {}


def search_orders(file: Path | None) -> list[tuple[Path, ...]]:
    """Return the folders in which neighbours are looked for, in the orders to try.

    `python FILE.py` looks in the file's folder and `python -m` in the current one. Both are
    searched: a repository's file in a folder imports from its root, where its scripts are.

    Args:
        file: The user's file; None for a module that is named by its import path.
    """
    here = Path.cwd()
    if file is None or file.parent == here:
        return [(here,)]
    return [(file.parent, here), (here, file.parent)]


@contextmanager
def importing_from(folders: Sequence[Path]) -> Iterator[None]:
    """Let modules of some folders be imported inside the block, those of the first one first.

    `sys.path` is restored afterwards. Modules that earlier blocks imported are forgotten where this
    one may mean others of the same name, such as `utils`.
    """
    earlier = [name for name, file in _imported.items() if _found_at(name, folders) != file]
    for name in earlier:
        sys.modules.pop(name, None)
        del _imported[name]
    before, path = set(sys.modules), list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        yield
    except ImportError:
        for name in _own_modules(before, folders):
            del sys.modules[name]  # the next order begins anew
        raise
    finally:
        sys.path[:] = path
        _imported.update(_own_modules(before, folders))


def _own_modules(before: set[str], folders: Sequence[Path]) -> dict[str, str]:
    """Return name and file of the modules that were imported since, from the user's folders."""
    found = {}
    installed = {Path(place) for place in sysconfig.get_paths().values()}
    for name in sys.modules.keys() - before:
        module = sys.modules[name]
        # a folder without __init__.py is a package, too, and has a place instead of a file
        place = getattr(module, "__path__", ())
        file = getattr(module, "__file__", None) or next(iter(place), None)
        above = set(Path(file).parents) if file else set()
        if above & set(folders) and not above & installed:
            found[name] = str(file)
    return found


def _found_at(name: str, folders: Sequence[Path]) -> str | None:
    """Return the file that a module's name means among some folders, or None."""
    inner = Path(*name.split("."))
    for folder in folders:
        for path in (folder / inner / "__init__.py", folder / inner.with_suffix(".py")):
            if path.is_file():
                return str(path)
    return next((str(folder / inner) for folder in folders if (folder / inner).is_dir()), None)
