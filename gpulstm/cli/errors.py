"""How a command ends that a mistake or Ctrl-C stops: by one line and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import click

from .. import dispatch

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
TERMINATED = 143  # and SIGTERM

# What bad input, a full disk or a small memory can raise. GPULSTM_TRACEBACK=1 shows where.
_USER_ERRORS = (
    ValueError,
    TypeError,
    ArithmeticError,
    OSError,
    ImportError,
    EOFError,  # click would say "Aborted!" and no more
    MemoryError,
    dispatch.BackendUnavailable,
)


class _CtrlC:
    """While a command works, the first Ctrl-C raises KeyboardInterrupt, so that the command can clean up. A second one
    ends the process: it comes where something has swallowed the first, or where cleaning up takes long."""

    seen = False

    def __enter__(self) -> _CtrlC:
        self._before = signal.getsignal(signal.SIGINT)
        ignored = self._before in (None, signal.SIG_IGN)
        self._active = not ignored and threading.current_thread() is threading.main_thread()
        if self._active:
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, self._before)

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.seen:
            os._exit(INTERRUPTED)
        self.seen = True
        raise KeyboardInterrupt


def raise_swallowed() -> None:
    """Before a command begins what lasts: raise the Ctrl-C that something has swallowed, such as a failed import."""
    ctrl_c = click.get_current_context().find_object(_CtrlC)
    if ctrl_c is not None and ctrl_c.seen:
        raise KeyboardInterrupt


class Commands(click.Group):
    """A group whose commands answer every mistake by one line, "Error: ...", and exit code 1; Ctrl-C by one and 130."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **options)
        except click.UsageError as error:
            raise _in_one_line(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        ctx.obj = ctrl_c = _CtrlC()
        try:
            with ctrl_c:
                return super().invoke(ctx)
        except click.UsageError as error:
            raise _in_one_line(error) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(INTERRUPTED)
        except BrokenPipeError:  # click ends quietly when the reader of a pipe has gone
            raise
        except Exception as error:
            if ctrl_c.seen:  # an import, a lock or a callback that was cut short raises errors of any kind
                click.echo("Interrupted.", err=True)
                sys.exit(INTERRUPTED)
            if not isinstance(error, _USER_ERRORS) or os.environ.get("GPULSTM_TRACEBACK"):
                raise
            raise click.ClickException(str(error) or type(error).__name__) from error


def _in_one_line(error: click.UsageError) -> click.ClickException:
    if type(error).__name__ == "NoArgsIsHelpError":  # it prints the help
        return error
    if type(error) is click.BadParameter and error.param is not None:
        return click.ClickException(f"{error.param.name}: {error.message}")
    return click.ClickException(error.format_message())


def watch_callbacks() -> None:
    """Let a Ctrl-C end the process that comes where no exception gets out, such as in a callback of a library."""
    sys.unraisablehook = _unraisable


def _unraisable(what: Any) -> None:
    if what.exc_type is KeyboardInterrupt:
        os._exit(INTERRUPTED)
    sys.__unraisablehook__(what)
