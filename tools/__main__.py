"""`python -m msrec.tools COMMAND`: what torchrun starts on every rank."""

from msrec.tools.cli import main

if __name__ == "__main__":
    main()
