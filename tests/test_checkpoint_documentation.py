"""The documents say what the code says."""

from pathlib import Path

import pytest

from docs.layout_table import layout_table, update
from recal.checkpoint.layouts import LAYOUTS
from recal.inspection.findings import CHECKS
from recal.networks.wrappers import NORMALISERS

DOCUMENT = Path(__file__).parents[1] / "docs" / "checkpoints.md"


def test_table_in_the_document_is_the_one_of_the_code():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert update(text) == text
    assert layout_table().count("\n") == len(LAYOUTS) + 1


def test_document_without_marks_is_refused():
    with pytest.raises(ValueError, match="end of layouts"):
        update("nothing")


def test_every_finding_and_normaliser_is_documented():
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text[text.index("| warning |") : text.index("`--data D` first compares")]
    assert table.count("\n| `") == len(CHECKS)
    assert all(f"`{name}`" in text for name in NORMALISERS[0])
