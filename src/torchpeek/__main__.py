"""The command line of a process: `python -m torchpeek`, and the script `torchpeek`, which imports this file.

Before signals are handled, a Ctrl-C is a traceback of Python's own. So signals wait until they are handled. Importing
this file is what takes them over: other programs may import `torchpeek.cli` and keep theirs.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # what `signal` is made of, and built in; `signal` itself imports `enum`, which takes long

_WAITING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
# Windows cannot make signals wait.
_MASK = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITING) if hasattr(signal, "pthread_sigmask") else None
try:
    from torchpeek.cli import main, signals

    signals.take_over()
finally:
    if _MASK is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _MASK)

if __name__ == "__main__":
    main()
