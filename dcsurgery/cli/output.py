"""The only place that prints: data to stdout, talk to stderr, colour and progress on terminals."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO

from dcsurgery.errors import DcSurgeryError, RequestError
from dcsurgery.printing import units
from dcsurgery.printing.sheet import Printed, Sheet, clean

WIDEST = 100
ASCII = str.maketrans("─│┐┘└┌├┤┼┴┬█▶▼", "-|+++++++++#>v")


def prepare_streams() -> None:
    """Make odd file names printable, and show libraries' progress bars on terminals only."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Closed by the caller (`2>&-`): libraries expect something to write to.
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        hide_library_bars()


def hide_library_bars() -> None:
    """Keep huggingface_hub and transformers from drawing; only before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def detach_stdout() -> None:
    """Send what is still to be printed nowhere: the reader of the pipe has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _printable(text: str, stream: TextIO) -> str:
    """Return the text without control characters, in ASCII lines where the stream needs that."""
    text = clean(text)
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.translate(ASCII)
    return text


def _write(stream: TextIO, text: str) -> None:
    """Write at once. Raises BrokenPipeError, or RequestError for a full disk (stdout alone)."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if stream is sys.stderr:
            # Nobody left to tell.
            return
        detach_stdout()
        raise RequestError(
            f"cannot write the output: {error.strerror}", hint="check where it is redirected to"
        ) from None


def _render(renderable: Any, stream: TextIO, **options: Any) -> str:
    """Return what rich makes of something on a stream: colours only on a terminal."""
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(
        file=buffer,
        force_terminal=stream.isatty(),
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(renderable, **options)
    return buffer.getvalue()


def _folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder that someone is writing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


class Output(Sheet):
    """What a command says. `as_json`: only data() reaches stdout. `quiet`: tell() is silent."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        super().__init__()
        self.as_json = as_json
        self.quiet = quiet
        self.stdout = sys.stdout
        if as_json or quiet:
            hide_library_bars()

    @property
    def width(self) -> int:
        """Columns to fill: the terminal's, at most 100; 80 where there is none."""
        from rich.console import Console

        return min(Console().width, WIDEST)

    def _print(self, text: Any, style: str = "", *, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else self.stdout
        if isinstance(text, str):
            text = _printable(text, stream)
        _write(stream, _render(text, stream, style=style or None, soft_wrap=True))

    def data(self, values: Mapping[str, Any]) -> None:
        """Print one JSON object on stdout."""
        _write(self.stdout, json.dumps(values, indent=2) + "\n")

    def show(self, text: str = "", style: str = "") -> None:
        """Print a line of the result."""
        self._print(text, style)

    def piece(self, text: str) -> None:
        """Print a piece of the result as it comes, without a line break."""
        _write(self.stdout, _printable(text, self.stdout))

    @property
    def on_terminal(self) -> bool:
        """Whether people watch the result."""
        return self.stdout.isatty()

    @contextmanager
    def columns(self, titles: Sequence[str]) -> Iterator[Callable[[int, str], None]]:
        """Show texts side by side while they grow: `add(index, piece)`. For terminals."""
        from rich.console import Console
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        texts = ["" for _ in titles]

        def table() -> Table:
            found = Table(box=None, expand=True, padding=(0, 2, 0, 0))
            for title in titles:
                found.add_column(Text(clean(title)), ratio=1, overflow="fold")
            found.add_row(*(Text(clean(text)) for text in texts))
            return found

        console = Console(file=self.stdout, width=self.width, legacy_windows=False)
        live = Live(get_renderable=table, console=console, refresh_per_second=8)

        def add(index: int, piece: str) -> None:
            texts[index] += piece

        with live:
            yield add

    def passage(self, pieces: Iterable[tuple[str, bool]]) -> None:
        """Print a text of pieces (text, marked): marked ones in [[ ]], green on a terminal."""
        from rich.text import Text

        text = Text()
        for piece, marked in pieces:
            text.append(f"[[{clean(piece)}]]" if marked else clean(piece), "green" * marked)
        self._print(text)

    def result(self, found: Printed, after: str = "") -> None:
        """Print what a command found or did, or its JSON; then say what comes `after`."""
        if self.as_json:
            self.data(found.to_dict())
            return
        found.show(self)
        if after:
            self.tell(after)

    def tell(self, text: str) -> None:
        """Say something on stderr: advice, progress, nothing a script would read."""
        if not self.quiet and not self.as_json:
            self._print(text, stderr=True)

    def warn(self, text: str) -> None:
        """Say on stderr, also with --quiet and --json, that a result may not be what is meant."""
        self._print(f"warning: {text}", "bold yellow", stderr=True)

    def fail(self, error: DcSurgeryError) -> None:
        """Print message and hint on stderr; with --json an error object on stdout as well."""
        self._print(f"error: {error.message}", "bold red", stderr=True)
        self._print(f"hint: {error.hint}", stderr=True)
        if not self.as_json:
            return
        kind = type(error).__name__
        found = {"type": kind, "message": error.message, "hint": error.hint}
        try:
            self.data({"schema_version": 1, "error": found})
        except (RequestError, BrokenPipeError):
            detach_stdout()

    def traceback(self) -> None:
        """Print the traceback of the exception being handled on stderr."""
        import traceback

        self._print(traceback.format_exc(), stderr=True)

    @contextmanager
    def working(
        self, text: str, *, growing: Path | None = None, fetches: bool = False
    ) -> Iterator[None]:
        """Show `text`, the seconds and the bytes of a growing folder while the block runs.

        On stderr, on a terminal only. A block that `fetches` from the Hub leaves the screen to the
        Hub client's own bars. What libraries print in the block goes to stderr: stdout is data.
        """
        with redirect_stdout(sys.stderr), self._working(text, growing, fetches):
            yield

    @contextmanager
    def _working(self, text: str, growing: Path | None, fetches: bool) -> Iterator[None]:
        if self.quiet or self.as_json or not sys.stderr.isatty():
            yield
            return
        if fetches:
            self.tell(text)
            yield
            return
        hide_library_bars()
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        started = time.monotonic()

        def line() -> Text:
            bytes_so_far = "" if growing is None else f", {units.size(_folder_bytes(growing))}"
            took = units.seconds(round(time.monotonic() - started))
            return Text(clean(f"{text} ... {took}{bytes_so_far}"))

        live = Live(
            get_renderable=line,
            console=Console(stderr=True),
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with live:
            yield

    @contextmanager
    def stepping(self, text: str) -> Iterator[Callable[[int, int, str], None]]:
        """Show a bar with the time left while the block runs, on stderr, on a terminal only.

        The block calls what it is given with (done, total, words). What libraries print in it goes
        to stderr.
        """
        with redirect_stdout(sys.stderr), self._stepping(text) as step:
            yield step

    @contextmanager
    def _stepping(self, text: str) -> Iterator[Callable[[int, int, str], None]]:
        if self.quiet or self.as_json or not sys.stderr.isatty():
            yield lambda done, total, words: None
            return
        hide_library_bars()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Left

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
        words = TextColumn("{task.fields[words]}")
        with Progress(*columns, words, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(clean(text), total=None, words="")
            yield lambda done, total, words: bar.update(
                task, completed=done, total=total, words=clean(words)
            )
