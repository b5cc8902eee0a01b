"""Parse a command line, run its command and turn errors into a message and an exit code."""

import argparse
import os
import select
import sys
from collections.abc import Sequence
from typing import NoReturn

from mtil.cli import streams
from mtil.errors import ConfigError, MtilError, UserError
from mtil.process import interrupts, supervisor

_EXTRAS = {
    "ray": "ray",
    "optuna": "tune",
    "transformers": "hf",
    "jinja2": "report",
    "markupsafe": "report",
    "vl_convert": "report",
    "sklearn": "report",
    "mlflow": "mlflow",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
"""Optional libraries and the extra of mtil that installs each."""


class CommandParser(argparse.ArgumentParser):
    """Argument parser that raises `UserError` instead of exiting the process."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` with argparse's message and the command for help."""
        raise UserError(f"{self.prog}: {message}; see `{self.prog} --help`.")


@streams.guard_output
def run_command_line(parser: CommandParser, arguments: Sequence[str] | None) -> int:
    """Parse the arguments, run the selected command and return the exit code.

    The parsed options hold `handler`, a function `(options, output)` that runs the command, and
    `configurable`: whether the command accepts overrides of configuration keys.
    """
    with interrupts.handle_signals():
        try:
            code, sentence = _run_command(parser, arguments)
        except BaseException:
            # A signal can surface inside a library as any error: only errors without a signal
            # are bugs.
            if not interrupts.has_pending_signal():
                raise
        if interrupts.has_pending_signal():
            # In a watched process this call does not return: the watcher prints the sentence.
            supervisor.exit_interrupted()
            code, sentence = supervisor.INTERRUPTED_EXIT_CODE, supervisor.INTERRUPTED_MESSAGE
        if sentence:
            line = streams.escape_controls(sentence, in_line=False)
            print(f"{parser.prog}: {line}", file=sys.stderr)  # noqa: T201
        return code


def _run_command(parser: CommandParser, arguments: Sequence[str] | None) -> tuple[int, str]:
    """Run the command. Return the exit code and the message for stderr, empty on success."""
    try:
        options, rest = parser.parse_known_args(arguments)
        command = f"{parser.prog} {options.command}"
        options.overrides = (
            _parse_overrides(rest) if options.configurable else _refuse_rest(command, rest)
        )
        # The console imports rich, which a help text does not need.
        from mtil.cli.console import CommandOutput

        options.handler(options, CommandOutput(as_json=options.json))
    except UserError as error:
        return 2, str(error)
    except MtilError as error:
        return 1, str(error)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        library = "ray" if library == "psutil" else library  # mtil needs psutil beside Ray only
        extra = _EXTRAS.get(library)
        if extra is None:
            raise
        without = ", or add `--local`" if getattr(options, "local", None) is False else ""
        return 2, f"This command needs `{library}`; run `pip install 'mtil[{extra}]'`{without}."
    except BrokenPipeError:
        # A broken pipe inside the program, such as a worker's, is a bug and needs its traceback.
        if not _has_reader_left():
            raise
        return 1, ""
    except KeyboardInterrupt:
        return supervisor.INTERRUPTED_EXIT_CODE, supervisor.INTERRUPTED_MESSAGE
    return 0, ""


def _has_reader_left() -> bool:
    """Return whether stdout's reader, such as `head`, has gone. If so, discard later output."""
    pipe = select.poll()
    # An empty event mask suffices: poll always reports a pipe without a reader as an error.
    pipe.register(sys.stdout.fileno(), 0)
    if not pipe.poll(0):
        return False
    # Python flushes stdout again at exit and would print a second BrokenPipeError.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _parse_overrides(rest: Sequence[str]) -> dict[str, str]:
    """Return overrides such as `--train.num-epochs 5` or `--seed=3` as text by dotted key."""
    overrides: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--"):
            raise ConfigError(
                f"An override must look like `--train.num-epochs 5`, but got {word!r}."
            )
        key, equals, value = word[2:].partition("=")
        if not equals:
            following = next(words, None)
            if following is None or following.startswith("--"):
                got = "nothing" if following is None else f"`{following}`"
                raise ConfigError(f"`--{key}` must be followed by a value, but {got} follows.")
            value = following
        overrides[key] = value
    return overrides


def _refuse_rest(command: str, rest: Sequence[str]) -> dict[str, str]:
    """Return no overrides, or raise `UserError` if unknown arguments remain."""
    if rest:
        raise UserError(f"`{command}` has no option {rest[0]!r}; see its `--help`.")
    return {}
