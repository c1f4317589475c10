"""The command `recal`, also as `python -m recal`."""

from __future__ import annotations

from recal.cli.main import main

if __name__ == "__main__":
    main()
