"""A command line to a command, and its errors to one sentence and an exit code."""

import argparse
import os
import select
import sys
from collections.abc import Sequence
from typing import NoReturn

from mtil.cli import streams
from mtil.errors import ConfigError, MtilError, UserError
from mtil.process import interrupts, supervisor

_EXTRAS = {"ray": "ray", "psutil": "ray", "optuna": "tune", "plotly": "tune", "transformers": "hf"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the command line."""
        raise UserError(f"{self.prog}: {message}; see `{self.prog} --help`.")


@streams.written
def answer(parser: Parser, arguments: Sequence[str] | None) -> int:
    """Run the command that a parser finds in the arguments, and return its exit code.

    The parsed options hold the function that is the command, `run(options, output)`, and whether
    it is `configurable`, that is takes overrides of configuration keys.
    """
    with interrupts.heeded():
        try:
            code, sentence = _outcome(parser, arguments)
        except BaseException:  # a signal may bring down a library with any error
            if not interrupts.has_arrived():
                raise
        if interrupts.has_arrived():
            supervisor.leave()
            code, sentence = supervisor.INTERRUPTED, supervisor.SENTENCE
        if sentence:
            print(f"{parser.prog}: {streams.shown(sentence, in_line=False)}", file=sys.stderr)  # noqa: T201
        return code


def _outcome(parser: Parser, arguments: Sequence[str] | None) -> tuple[int, str]:
    """Run the command. Return its exit code and the sentence for stderr, if it failed."""
    try:
        options, rest = parser.parse_known_args(arguments)
        told = f"{parser.prog} {options.command}"
        options.overrides = _overrides(rest) if options.configurable else _nothing(told, rest)
        from mtil.cli.console import Output  # not needed to print a help text

        options.handler(options, Output(as_json=options.json))
    except UserError as error:
        return 2, str(error)
    except MtilError as error:
        return 1, str(error)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(library)
        if extra is None:
            raise
        without = ", or add `--local`" if getattr(options, "local", None) is False else ""
        return 2, f"This command needs `{library}`; run `pip install 'mtil[{extra}]'`{without}."
    except BrokenPipeError:
        if not _reader_has_left():
            raise
        return 1, ""
    except KeyboardInterrupt:
        return supervisor.INTERRUPTED, supervisor.SENTENCE
    return 0, ""


def _reader_has_left() -> bool:
    """Say whether stdout's reader, such as `head`, has left; if so, write to nobody from now on."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # a pipe without a reader is always in error
    if not pipe.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _overrides(rest: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
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
                what = "nothing" if following is None else f"`{following}`"
                raise ConfigError(f"`--{key}` must be followed by a value, but {what} follows.")
            value = following
        found[key] = value
    return found


def _nothing(command: str, rest: Sequence[str]) -> dict[str, str]:
    if rest:
        raise UserError(f"`{command}` has no option {rest[0]!r}; see its `--help`.")
    return {}
