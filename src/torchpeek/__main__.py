"""`python -m torchpeek`: the command line."""

from torchpeek.cli import main

if __name__ == "__main__":
    main()
