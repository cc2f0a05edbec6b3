"""The command line: commands, and the one place that turns an error into an exit code.

0 done, 1 expected failure, 2 usage, 3 verification failed, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Annotated, Any

import typer

from dcsurgery import __version__
from dcsurgery.cli import (
    architectures,
    ask,
    convert,
    demo,
    eval,
    export,
    finetune,
    inspect,
    probe,
    push,
    recipe,
    trial,
    verify,
)
from dcsurgery.cli.options import spread
from dcsurgery.cli.output import Output, detach_stdout, prepare_streams
from dcsurgery.errors import DcSurgeryError

# In the order of the help: a command is the function of its module's name.
COMMANDS: tuple[ModuleType, ...] = (
    *(inspect, probe, trial, convert, verify, finetune, eval, ask),
    *(export, push, demo, architectures),
)
INTERRUPTED = 128 + signal.SIGINT
PIPE_CLOSED = 128 + 13

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Examples:\n\n\b\n  dcsurgery demo\n  dcsurgery inspect llava-hf/llava-1.5-7b-hf\n"
    "  dcsurgery convert llava-hf/llava-1.5-7b-hf -o llava-dci",
)


class UnexpectedError(DcSurgeryError):
    """An exception nobody foresaw, in words."""


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with its errors told to people and turned into exit codes."""

    @functools.wraps(function)
    def run(**values: Any) -> None:
        try:
            code = function(**values) or 0
            sys.stdout.flush()
        except BrokenPipeError:
            detach_stdout()
            code = PIPE_CLOSED
        except KeyboardInterrupt:
            Output().tell("interrupted")
            code = INTERRUPTED
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        # The last resort of the program: people get words, not a traceback.
        except Exception as error:
            out = Output(as_json=bool(values.get("as_json")))
            if os.environ.get("DCSURGERY_DEBUG") == "1":
                out.traceback()
            out.fail(_in_words(error))
            code = 1
        if code:
            raise typer.Exit(code)

    return run


def _in_words(error: Exception) -> DcSurgeryError:
    if isinstance(error, DcSurgeryError):
        return error
    if isinstance(error, OSError) and error.strerror:
        place = "" if error.filename is None else f": {error.filename}"
        return UnexpectedError(
            f"{error.strerror}{place}", hint="check the path, its permissions and the disk"
        )
    if isinstance(error, MemoryError):
        return UnexpectedError("out of memory", hint="close other programs, or use another machine")
    return UnexpectedError(
        f"this is a bug in dcsurgery {__version__}: {type(error).__name__}: {error}",
        hint="run it again with DCSURGERY_DEBUG=1 to see the traceback, and report both",
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dcsurgery {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def dcsurgery(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Give a vision-language model that already exists a Dense Connector (arXiv 2405.13800).

    Exit codes: 0 done, 1 expected failure, 2 usage, 3 verification failed, 130 interrupted.
    DCSURGERY_DEBUG=1 shows the traceback of an error.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _register(place: typer.Typer, name: str, function: Callable[..., Any], lines: Any) -> None:
    epilog = "Examples:\n\n\b\n" + "\n".join(f"  {line}" for line in lines)
    place.command(name, epilog=epilog)(guarded(spread(function)))


for _module in COMMANDS:
    _name = _module.__name__.rpartition(".")[2]
    _register(app, _name, getattr(_module, _name), _module.EXAMPLES)
_recipes = typer.Typer(help=recipe.HELP, no_args_is_help=True, rich_markup_mode=None)
for _name, _function in recipe.COMMANDS.items():
    _register(_recipes, _name, _function, recipe.EXAMPLES[_name])
app.add_typer(_recipes, name="recipe")


def _terminate(number: int, frame: object) -> None:
    """Leave by an exception, so that staging folders are cleared; once."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line of sys.argv and exit."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _terminate)
    prepare_streams()
    try:
        app(prog_name="dcsurgery")
    except OSError as error:
        # Help that cannot be written; errors of commands do not come this far.
        detach_stdout()
        Output().fail(_in_words(error))
        raise SystemExit(1) from None
