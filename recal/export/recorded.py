"""What a file's record takes from elsewhere: names of classes, accuracies of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from recal.errors import InputError
from recal.files import require_file

if TYPE_CHECKING:
    from pathlib import Path


KEPT = ("clean_accuracy", "corrupted_accuracy", "mean_corruption_error")


def read_class_names(path: Path) -> list[str]:
    """Return the names in a file, one a line, in the order of the logits.

    Raises:
        InputError: It cannot be read as text, or has empty lines between names.
    """
    require_file(path, "a file of class names")
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected names, one a line, got {error}.") from error
    if not all(name.strip() for name in names):
        raise InputError(f"{path}: expected a name on every line, got an empty line.")
    return [name.strip() for name in names]


def run_accuracies(folder: Path, sha256: str) -> dict[str, Any]:
    """Return what a run says of the variant with this hash: suite, images, accuracies.

    Raises:
        InputError: The folder is no finished run, or the variant was not evaluated in it.
    """
    try:
        request = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        document = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        names = [t["name"] for t in request["targets"] if t["sha256"] == sha256]
        rows = [row for row in document["summary"] if row["target"] in names]
        if not rows:
            known = ", ".join(t["name"] for t in request["targets"])
            raise InputError(
                f"{folder}: expected a run of the variant that is exported, got one of {known}. "
                "Evaluate it, or leave --run out."
            )
        found = {key: rows[0][key] for key in KEPT if rows[0].get(key) is not None}
        return {
            "suite": document["suite"],
            "provenance": document["provenance"],
            "images": document["images"],
            **found,
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: expected the folder of a finished run, got {error}."
        ) from error
