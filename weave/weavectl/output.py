"""What a person or a script sees: plain lines, a progress bar on a terminal, JSON lines where asked."""

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


class UsageError(Exception):
    """The options do not go together, or with what there is; the message says what to do."""


class Output:
    """Results go to standard output, everything else to standard error. Text may come from anybody, so control
    characters are shown, and not obeyed."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        if self._errors.width < 1:  # COLUMNS=0, of a terminal whose size nobody knows: rich would print nothing
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

    def event(self, event: msgspec.Struct) -> None:
        """A daemon's event as it is, for scripts only."""
        if self.json:
            self.line("", **msgspec.to_builtins(event))

    def note(self, text: str) -> None:
        """For people alone, where standard output is the image."""
        self._tell(Text(visible(text)))

    def error(self, error: Error) -> None:
        """The daemon's error; its message names the bound, if that is what it is about."""
        if self.json:
            self.event(error)
        self.problem(f"{error.code}: {error.message}")

    def problem(self, text: str) -> None:
        """What went wrong."""
        self._tell(Text(f"weavectl: {visible(text)}", style="red"))

    def warning(self, text: str) -> None:
        """For people, whatever scripts get."""
        self._tell(Text(f"weavectl: warning: {visible(text)}", style="yellow"))

    def progress(self) -> Progress:
        """A bar; silent where there is no terminal to draw it on."""
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
            # Lines go above the bar where both are on a terminal. A file or a pipe gets what was written to it.
            redirect_stdout=sys.stdout.isatty(),
        )

    def _tell(self, text: Text) -> None:
        with contextlib.suppress(OSError):  # nowhere to say that it cannot be said
            self._errors.print(text)
