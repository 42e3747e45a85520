"""What weavectl prints: plain lines and a progress bar for people, JSON lines with --json."""

import contextlib
import sys
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from weave.protocol.client_messages import Error
from weave.protocol.text import json_line, visible

_USUAL_WIDTH = 80
# To the first column of the first line, then clear to the end of the screen.
_CLEAR = "\x1b[H\x1b[J"


class UsageError(Exception):
    """The options contradict each other, or what exists. The message says what to do."""


class Output:
    """Results go to standard output, everything else to standard error. Text may be untrusted, so control characters
    are printed as escapes."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        if self._errors.width < 1:  # COLUMNS=0, or a terminal of unknown size: rich would print nothing
            self._errors.width = _USUAL_WIDTH

    def line(self, text: str, **fields: Any) -> None:
        """`text` for people, `fields` for scripts."""
        try:
            if self.json:
                sys.stdout.flush()
                sys.stdout.buffer.write(json_line(fields) + b"\n")
            else:
                sys.stdout.write(visible(text) + "\n")
            sys.stdout.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from None

    def clear(self) -> None:
        """What follows replaces what a terminal shows; elsewhere it is separated by an empty line."""
        if not self.json:
            sys.stdout.write(_CLEAR if sys.stdout.isatty() else "\n")

    def event(self, event: msgspec.Struct) -> None:
        """A daemon's event, for scripts only."""
        if self.json:
            self.line("", **msgspec.to_builtins(event))

    def note(self, text: str) -> None:
        """For people only, when standard output is the image."""
        self._print(Text(visible(text)))

    def error(self, error: Error) -> None:
        """The daemon's error; its message names the bound, if there is one."""
        if self.json:
            self.event(error)
        self.problem(f"{error.code}: {error.message}")

    def problem(self, text: str) -> None:
        """An error, for people."""
        self._print(Text(f"weavectl: {visible(text)}", style="red"))

    def warning(self, text: str) -> None:
        """A warning, for people."""
        self._print(Text(f"weavectl: warning: {visible(text)}", style="yellow"))

    def progress(self) -> Progress:
        """A progress bar; silent unless standard error is a terminal."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        return Progress(
            *columns,
            console=self._errors,
            disable=self.json or not self._errors.is_terminal,
            # Lines are printed above the bar if both are on a terminal. A file or a pipe gets them unchanged.
            redirect_stdout=sys.stdout.isatty(),
        )

    def _print(self, text: Text) -> None:
        with contextlib.suppress(OSError):  # standard error cannot be written to
            self._errors.print(text)
