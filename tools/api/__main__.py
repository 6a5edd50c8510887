"""Runs a command: `python -m msrec COMMAND`. torchrun starts this on every rank."""

from msrec.tools.cli.main import main

if __name__ == "__main__":
    main()
