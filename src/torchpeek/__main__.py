"""The command line of a process: `python -m torchpeek`, and the script `torchpeek`, which imports this file.

Before signals are handled, a Ctrl-C is a traceback of Python's own. So signals wait until they are handled. Importing
this file is what takes them over: other programs may import `torchpeek.cli` and keep theirs.
"""

import _signal  # `signal` itself imports `enum`, which takes long

_WAITING = [getattr(_signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(_signal, name)]
# Windows cannot make signals wait.
_MASK = _signal.pthread_sigmask(_signal.SIG_BLOCK, _WAITING) if hasattr(_signal, "pthread_sigmask") else None
try:
    from torchpeek.cli import main, signals

    signals.take_over()
finally:
    if _MASK is not None:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, _MASK)

if __name__ == "__main__":
    main()
