"""The entry point of the command ``gpulstm``, of which Ctrl-C makes no traceback from its first moment on.

It lies outside the package, since importing that takes a while: until a command begins, and after it has ended, there
is nothing to clean up, and Ctrl-C ends the process without a word, as it ends one that is not Python's.
"""

from __future__ import annotations

signal = __import__("_signal")  # not signal itself, which takes a while to make enumerations of these
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as under nohup
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Run the command line."""
    from gpulstm.cli import main

    main()
