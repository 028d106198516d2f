"""Starts the command line: the console script, and `python -m irmapdb`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # the import of signal takes time, in which Ctrl-C has a traceback

__all__ = ["main"]


def main() -> None:
    """Import the commands, and call the one that is named.

    Ctrl-C during the imports ends the process at once: nothing is begun, so there is nothing to
    tell. A process that ignores it (nohup) still does.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from irmapdb.commands import main as run  # noqa: PLC0415 see above

    signal.signal(signal.SIGINT, before)
    run()


if __name__ == "__main__":
    main()
