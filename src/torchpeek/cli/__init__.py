"""The command line: one file per command; parse, call, print."""

from torchpeek.cli.main import main

__all__ = ["main"]
