"""The table of layouts in the documentation, generated from the table in the code.

Run `python docs/layout_table.py docs/checkpoints.md` after a change.
"""

from __future__ import annotations

import sys
from pathlib import Path

from recal.checkpoint.layouts import LAYOUTS, PLAIN, Layout

BEGIN = "<!-- layouts: python docs/layout_table.py docs/checkpoints.md -->"
END = "<!-- end of layouts -->"


def layout_table() -> str:
    """Return the layouts as a table in Markdown, one line per layout."""
    lines = [
        "| layout | written by | keys, in order of the branches | affine | roles by convention | "
        "source |",
        "|---|---|---|---|---|---|",
    ]
    for layout in LAYOUTS:
        roles = f"refused: {layout.refused}" if layout.refused else layout.roles
        cells = (
            f"`{layout.name}`", layout.writer, _keys(layout), layout.affine, roles, layout.source,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _keys(layout: Layout) -> str:
    places = sorted(layout.places, key=lambda place: (place != PLAIN, place.first))
    keys = [place.key.format(layer="P", index="N", leaf="*") for place in places]
    if layout.affine == "shared":
        keys = ["P.{weight,bias}", *(key for key in keys if key != "P.*"), "P.running_*"]
        keys = keys if PLAIN in places else keys[:-1]
    if layout.affine == "sandwich":
        keys.append("P.embed.weight")
    if layout.name == "dubin":
        keys.append("P.IN.{weight,bias}")
    return ", ".join(f"`{key}`" for key in keys)


def update(text: str) -> str:
    """Return a document with the table between its marks replaced by that of the code.

    Raises:
        ValueError: The document lacks a mark.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected the lines '{BEGIN}' and '{END}', got neither or one")
    return f"{before}{BEGIN}\n\n{layout_table()}\n\n{END}{after}"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(update(document.read_text(encoding="utf-8")), encoding="utf-8")
