"""Generating images into files: `weavectl generate`, and what `weavectl repeat` shares with it."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from msgspec import structs

from weave.client import Answer, Client, Control, InvalidRequest
from weave.client.pixels import Upload, pixels_of
from weave.protocol.client_messages import Done, Image, Loading, Preview, Progress, Queued, Tokens
from weave.protocol.parameters import PARAMETERS
from weave.weavectl.connect import connect
from weave.weavectl.image_files import ImageFiles, is_standard_output, open_image_files
from weave.weavectl.output import Output, UsageError


class InputFile(NamedTuple):
    """A file with an image, given with `option`; - is standard input."""

    option: str
    path: str

    def read(self) -> bytes:
        """Its bytes. Raises UsageError."""
        if self.path == "-":
            if sys.stdin is None or sys.stdin.isatty():
                raise UsageError(f"{self.option}: standard input is not a file; redirect it")
            return sys.stdin.buffer.read()
        try:
            with open(self.path, "rb") as file:
                return file.read()
        except OSError as error:
            raise UsageError(f"{self.option}: {self.path}: {error.strerror}") from None

    def pixels(self, field: str) -> Upload:
        """`field` is the parameter that the image is for. Raises UsageError."""
        return pixels_in(self, field, self.read())


def pixels_in(file: InputFile, field: str, data: bytes) -> Upload:
    """The pixels of a file that was read. Raises UsageError."""
    try:
        return pixels_of(field, data)
    except InvalidRequest as error:
        text = str(error).removeprefix(f"{field}: its bytes ").removeprefix(f"{field} ")
        shown = "standard input" if file.path == "-" else file.path
        raise UsageError(f"{file.option}: {shown} {text}") from None


def check_standard_input(files: list[InputFile]) -> None:
    """Raises UsageError if it is to be read more than once."""
    given = [file.option for file in files if file.path == "-"]
    if len(given) > 1:
        raise UsageError(f"standard input is only one file, and {' and '.join(given)} would read it")


def generate(options: argparse.Namespace, output: Output) -> int:
    """Generate images into files."""
    parameters = {name: getattr(options, name) for name, parameter in PARAMETERS.items() if parameter.option}
    check_standard_input(list(_files_in(parameters)))
    with opened(options, options.images, output, previews=options.preview_every != 0) as files:
        parameters = {name: _decoded(name, value) for name, value in parameters.items()}
        with connect(options) as client:
            generate_into(
                client, options.prompt, parameters, Results(files, output, options.images, options.output == "-")
            )
    return 0


@contextlib.contextmanager
def opened(options: argparse.Namespace, images: int, output: Output, *, previews: bool) -> Iterator[ImageFiles]:
    """The files of options.output. Raises UsageError, OSError."""
    if is_standard_output(options.output):
        options.output = "-"
    if options.output == "-" and output.json:
        raise UsageError("-o - and --json would both write to standard output")
    with contextlib.closing(open_image_files(options.output, images, force=options.force, previews=previews)) as files:
        yield files


def _files_in(parameters: dict[str, Any]) -> Iterator[InputFile]:
    for value in parameters.values():
        for item in value if isinstance(value, tuple) and not isinstance(value, InputFile) else (value,):
            found = item.image if isinstance(item, Control) else item
            if isinstance(found, InputFile):
                yield found


def _decoded(field: str, value: Any) -> Any:
    """Replaces files by their pixels."""
    if isinstance(value, InputFile):
        return value.pixels(field)
    if isinstance(value, Control):
        return structs.replace(value, image=_decoded(field, value.image))
    if isinstance(value, tuple):
        return tuple(_decoded(field, item) for item in value)
    return value


class Results(NamedTuple):
    """Where the `images` go: each to its file, or the one with the number `only` (from 0) to the only file."""

    files: ImageFiles
    output: Output
    images: int
    to_standard_output: bool
    only: int | None = None


def generate_into(client: Client, prompt: str, parameters: dict[str, Any], results: Results) -> None:
    """Generate, and show what happens."""
    output = results.output
    with output.progress() as progress:
        task = progress.add_task("queued", total=None)
        for answer in client.generate(prompt, **parameters):
            client.timeout = None  # it has answered; a job may take any time
            match answer.event:
                case Queued(position=position):
                    progress.update(task, description=f"queued, {position} before")
                case Loading(model=model):
                    progress.update(task, description=f"loading {model}")
                case Progress(image=image, step=step, steps=steps):
                    described = f"image {image + 1} of {results.images}"
                    progress.update(task, description=described, completed=step, total=steps)
                case Preview(image=image) | Image(image=image):
                    if results.only not in (None, image):
                        continue
                    results.files.write(_file_number(results, image), answer.data)
            _show(answer, results)


def _file_number(results: Results, image: int) -> int:
    return image if results.only is None else 0


def _show(answer: Answer, results: Results) -> None:
    # If the image goes to standard output, nothing else does.
    output = results.output
    say = output.note if results.to_standard_output else output.line
    if isinstance(answer.event, Image):
        shown, seed = results.files.display_name(_file_number(results, answer.event.image)), answer.event.seed
        if output.json:
            output.line("", event="image", file=shown, seed=seed)
        else:
            say(f"{shown} (seed {seed})")
    elif isinstance(answer.event, Done) and answer.event.timings is not None and not output.json:
        timings = answer.event.timings
        say(f"{timings.generating:.2f} s, and {timings.loading:.2f} s to load the model")
    else:
        output.event(answer.event)
    if isinstance(answer.event, Done) and answer.event.tokens is not None:
        _warn_if_cut(answer.event.tokens, output)


def _warn_if_cut(tokens: Tokens, output: Output) -> None:
    for prompt, encoders in (("prompt", tokens.prompt), ("negative prompt", tokens.negative_prompt)):
        for tokens_of in encoders:
            if tokens_of.cut:
                total = tokens_of.used + tokens_of.cut
                output.warning(
                    f"the {prompt} has {total} tokens; {tokens_of.encoder} takes {tokens_of.used}, "
                    f"so {tokens_of.cut} were cut"
                )
