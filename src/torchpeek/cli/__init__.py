"""The command line.

`commands.py` declares every command and its options, which are grouped in `options.py`; `option_values.py` checks their
values. None of these imports torch, so help and wrong options are answered at once. The function of a command imports
the file of the same name and calls its `run`, which does the work: parse, call, print.
"""

from torchpeek.cli.app import main

__all__ = ["main"]
