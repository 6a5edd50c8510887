"""`python -m msrec.launch COMMAND`: what torchrun starts on every rank."""

from msrec.launch.cli import main

if __name__ == "__main__":
    main()
