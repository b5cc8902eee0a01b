"""Commands, their flags, and what an error becomes: one sentence and an exit code."""

import argparse
import os
import select
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from mtil import __version__
from mtil.cli import streams
from mtil.errors import ConfigError, MtilError, UserError
from mtil.process import interrupts, supervisor

_EXTRAS = {"ray": "ray", "optuna": "tune", "plotly": "tune", "transformers": "hf"}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the command line."""
        raise UserError(f"{self.prog}: {message}; see `{self.prog} --help`.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 wrong input, 130 interrupted, 1 else.

    Without arguments the command line's are taken, in a process that
    `mtil.process.supervisor` watches.
    """
    if arguments is None:
        supervisor.watch("mtil")
    return answer(_parser(), arguments)


@streams.written
def answer(parser: Parser, arguments: Sequence[str] | None) -> int:
    """Run the command that a parser finds in the arguments, and return its exit code.

    The parsed options name the module whose `run` takes them, and whether the command is
    `configurable`, that is takes overrides of configuration keys.
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
        command = import_module(options.module)
        command.run(options)
    except UserError as error:
        return 2, str(error)
    except MtilError as error:
        return 1, str(error)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(library)
        if extra is None:
            raise
        return 2, f"This command needs `{library}`; run `pip install 'mtil[{extra}]'`."
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


def _parser() -> Parser:
    parser = Parser(
        prog="mtil",
        description="Train one network that outlines breast tumours and says benign or malignant.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mtil {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _phantom, _download, _prepare, _inspect, _train, _circle, _status, _stop, _gc, _evaluate,
        _predict, _doctor,
    ):  # fmt: skip
        add(commands)
    return parser


_Commands = argparse._SubParsersAction


def _command(
    commands: "_Commands[Parser]", name: str, text: str, *, module: str | None = None
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(module=f"mtil.cli.{module or name}", configurable=False)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _on_ray(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="show what Ray says")


def _phantom(commands: "_Commands[Parser]") -> None:
    parser = _command(
        commands, "phantom", "make synthetic images in the BUSI layout", module="data"
    )
    parser.add_argument("out", metavar="OUT", help="an empty or new folder")
    parser.add_argument(
        "--num-images", type=int, default=240, help="how many images, without near-copies (240)"
    )
    parser.add_argument(
        "--seed", type=int, default=0,
        help="0 or more; the same seed gives the same bytes, whatever draws them (0)",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=int, default=256,
        help="typical side in pixels, 64 to 4096; heights are 75 to 100 %% of it, widths 85 to "
        "125 %% (256)",
    )  # fmt: skip
    parser.add_argument(
        "--max-views", type=int, default=1,
        help="each patient has 1 to so many images; patients.csv, which `mtil prepare --groups` "
        "takes, says whose each is (1)",
    )  # fmt: skip
    parser.add_argument(
        "--num-duplicates", type=int, default=0,
        help="near-copies to add, as many as images at most, listed in duplicates.csv (0)",
    )  # fmt: skip
    parser.add_argument(
        "--num-workers", type=int, help="processes that draw (one a CPU); they change no byte"
    )


def _download(commands: "_Commands[Parser]") -> None:
    parser = _command(commands, "download", "fetch a published collection")
    parser.add_argument("name", metavar="NAME", nargs="?", help="such as bus_bra; see --list")
    parser.add_argument("out", metavar="OUT", nargs="?", help="an empty or new folder")
    parser.add_argument(
        "--accept-licence", action="store_true", help="you have read the licence and accept it"
    )
    parser.add_argument("--list", action="store_true", help="list the collections and leave")


def _prepare(commands: "_Commands[Parser]") -> None:
    parser = _command(
        commands, "prepare", "turn collections into a data set of shards", module="data"
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, table or bucket prefix to read")
    of_source = parser.add_argument_group("of the source named last")
    of_source.add_argument(
        "--layout", action=_OfSource, required=True,
        choices=("busi", "udiat", "bus_bra", "bus_uclm", "breast", "table"),
        help="how it is laid out",
    )  # fmt: skip
    of_source.add_argument(
        "--groups", action=_OfSource, metavar="FILE", help="CSV of images that belong together"
    )
    of_source.add_argument(
        "--folds", action=_OfSource, choices=("official",),
        help="take its own folds: bus_bra's 5 or 10 by --num-folds, or a table's column `fold`",
    )  # fmt: skip
    of_source.add_argument(
        "--columns", action=_OfSource, metavar="ROLE=COLUMN,…",
        help="a table's columns, such as image=path,label=diagnosis",
    )  # fmt: skip
    of_source.add_argument(
        "--classes", action=_OfSource, metavar="WORD=CLASS,…",
        help="a table's words for classes, such as 0=benign,1=malignant",
    )  # fmt: skip
    of_source.add_argument(
        "--invert-masks", action=_OfSource, nargs=0, help="lesions are black on white in its masks"
    )
    parser.add_argument(
        "--and", action=_AndSource, dest="more", metavar="SOURCE", help="another source"
    )
    parser.add_argument("--to", required=True, metavar="URI", help="where the data set is written")
    parser.add_argument(
        "--append", action="store_true",
        help="add the images that the data set does not have yet, as a new version of it",
    )  # fmt: skip
    parser.add_argument("--image-size", type=int, help="side of the stored images (256)")
    parser.add_argument("--num-folds", type=int, help="folds (5)")
    parser.add_argument("--seed", type=int, help="seed of the folds (0)")
    parser.add_argument(
        "--protocol", choices=("grouped", "paper", "official"),
        help="whole groups to folds (grouped); image by image as in most papers; or the sources' "
        "own folds",
    )  # fmt: skip
    parser.add_argument(
        "--stratify", choices=("class", "class-and-size"),
        help="what folds share evenly: terciles of lesion size within each class (class-and-size), "
        "or classes alone",
    )  # fmt: skip
    parser.add_argument(
        "--holdout", metavar="SHARE|FILE", help="keep images for a final test: a share, or a CSV"
    )
    parser.add_argument("--splits", metavar="FILE", help="folds as in an earlier splits.json")
    parser.add_argument(
        "--skip-invalid", action="store_true", help="list images that cannot be used, and go on"
    )
    parser.add_argument(
        "--allow-drops", type=float, metavar="SHARE",
        help="share of the images, 0 to 1, that may be dropped or lie in one group of near-copies "
        "(0.05 and 0.1)",
    )  # fmt: skip
    parser.add_argument(
        "--on-ray", action="store_true", help="share the work over the cluster of RAY_ADDRESS"
    )
    _on_ray(parser)


def _inspect(commands: "_Commands[Parser]") -> None:
    parser = _command(
        commands,
        "inspect",
        "say what a data set holds and what its audit found",
        module="inspection",
    )
    parser.add_argument("data", metavar="URI", help="a prepared data set")
    _of_version(parser, "which version; the newest if none is named")


class _OfSource(argparse.Action):
    """Keeps an option with the source that was named last."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object,
        option: str | None = None,
    ) -> None:  # fmt: skip
        value = True if self.nargs == 0 else values
        if namespace.more:
            namespace.more[-1][self.dest] = value
        else:
            setattr(namespace, self.dest, value)


class _AndSource(argparse.Action):
    """Begins another source."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object,
        option: str | None = None,
    ) -> None:  # fmt: skip
        namespace.more = [*(namespace.more or []), {"source": values}]


def _train(commands: "_Commands[Parser]") -> None:
    parser = _command(commands, "train", "train a fold, or all of them")
    _trained(parser)


def _circle(commands: "_Commands[Parser]") -> None:
    parser = _command(commands, "circle", "train in rounds, each with the maps of the one before")
    _trained(parser)


def _status(commands: "_Commands[Parser]") -> None:
    parser = _command(
        commands, "status", "say how far a circle or a training is, from its files alone"
    )
    parser.add_argument("--run", required=True, metavar="URI", help="the run")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--watch", action="store_true", help="go on until the run has ended")
    what.add_argument(
        "--lineage", metavar="SAMPLE_ID", help="say what an image's map and prediction come from"
    )
    parser.add_argument("--fold", type=int, metavar="N", help="with --lineage: whose map")


def _stop(commands: "_Commands[Parser]") -> None:
    parser = _command(commands, "stop", "end a circle; it can go on later", module="status")
    parser.add_argument("--run", required=True, metavar="URI", help="the run")


def _gc(commands: "_Commands[Parser]") -> None:
    parser = _command(
        commands, "gc", "list what a run needs no more, and delete it", module="retention"
    )
    parser.add_argument("--run", required=True, metavar="URI", help="the run")
    parser.add_argument("--yes", action="store_true", help="delete it")


def _of_version(parser: argparse.ArgumentParser, about: str) -> None:
    parser.add_argument("--data-version", type=int, metavar="N", help=about)


def _trained(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(configurable=True)
    parser.add_argument("--data", required=True, metavar="URI", help="a prepared data set")
    _of_version(parser, "which version of it; the run's, or the newest, if none is named")
    parser.add_argument("--run", required=True, metavar="URI", help="where results go")
    parser.add_argument(
        "--config", default="base", metavar="PRESET|FILE", help="demo, cpu, base or a YAML file"
    )
    parser.add_argument("--fold", "--folds", default="0", help="`0`, `0,2` or `all` (0)")
    parser.epilog = (
        "Any configuration key can follow, such as --train.num-epochs 5; "
        "`mtil train --keys` lists them."
    )
    parser.add_argument("--keys", action=_Keys, help="list the configuration keys and leave")
    _on_ray(parser)


def _evaluate(commands: "_Commands[Parser]") -> None:
    parser = _command(commands, "evaluate", "score the test folds of a run")
    parser.set_defaults(configurable=True)
    parser.add_argument("--run", required=True, metavar="URI", help="a trained run")
    parser.add_argument("--data", metavar="URI", help="the data set, if it has moved since")
    parser.add_argument(
        "--fold", "--folds",
        help="`0`, `0,2`, `all` (all that are trained) or `holdout`",
    )  # fmt: skip
    parser.add_argument(
        "--round", type=int, metavar="N", help="of a circle; the last that all folds have reached"
    )
    parser.add_argument("--num-workers", type=int, help="processes (one a CPU)")
    _on_ray(parser)


def _predict(commands: "_Commands[Parser]") -> None:
    parser = _command(commands, "predict", "outline and classify ordinary images")
    parser.add_argument(
        "model",
        metavar="RUN_OR_CHECKPOINT",
        help="a run, or one of its model files, rounds/*/fold-*/model-*.pt",
    )
    parser.add_argument("input", metavar="INPUT", help="an image, a folder or a bucket prefix")
    parser.add_argument(
        "out", metavar="OUT", help="folder or bucket prefix for masks, overlays and CSV"
    )


def _doctor(commands: "_Commands[Parser]") -> None:
    parser = _command(commands, "doctor", "say what this installation can do")
    parser.add_argument(
        "--to", metavar="URI", help="also write, read and delete a small object here"
    )


class _Keys(argparse.Action):
    def __init__(self, **options: object) -> None:
        super().__init__(nargs=0, **options)  # type: ignore[arg-type]

    def __call__(self, *_: object) -> None:
        from mtil.config import documented

        for name, kind, value in documented():
            print(f"{name:38} {value!s:24} {kind}")  # noqa: T201
        sys.exit(0)
