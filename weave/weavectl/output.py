"""What a person or a script sees: rich on a terminal, plain lines elsewhere, JSON lines where asked."""

import sys
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from weave.protocol.client_messages import Error


class Output:
    """Results go to standard output, everything else to standard error."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.console = Console(highlight=False, soft_wrap=True)
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def line(self, text: str, **fields: Any) -> None:
        """`text` for people, `fields` for scripts."""
        if self.json:
            sys.stdout.write(msgspec.json.encode(fields).decode() + "\n")
            sys.stdout.flush()
        else:
            self.console.print(text, markup=False)

    def event(self, event: msgspec.Struct) -> None:
        """A daemon's event as it is, for scripts only."""
        if self.json:
            self.line("", **msgspec.to_builtins(event))

    def error(self, error: Error) -> None:
        """The daemon's error, with the bound where it names one."""
        if self.json:
            self.event(error)
        bound = "" if error.min is None else f" (allowed: {error.min} to {error.max})"
        self._errors.print(f"weavectl: {error.code.value}: {error.message}{bound}", markup=False, style="red")

    def progress(self) -> Progress:
        """A bar; silent where there is no terminal to draw it on."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=self._errors, disable=self.json or not self._errors.is_terminal)
