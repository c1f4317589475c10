"""The command `recal`, also as `python -m recal`."""

from recal.cli.main import main

if __name__ == "__main__":
    main()
