"""Entry point of `mtil`: the parser with all commands."""

from collections.abc import Sequence

from mtil import __version__
from mtil.cli.command_line import CommandParser, run_command_line
from mtil.cli.commands import (
    circle,
    completion,
    distil,
    doctor,
    download,
    evaluate,
    inspection,
    phantom,
    predict,
    prepare,
    report,
    retention,
    status,
    stop,
    track,
    train,
)
from mtil.cli.completion import answer_shell
from mtil.process import supervisor

# The order of the commands in `mtil --help`: from images to predictions.
_ADD_COMMANDS = (
    phantom.add_phantom_command,
    download.add_download_command,
    prepare.add_prepare_command,
    inspection.add_inspect_command,
    train.add_train_command,
    distil.add_distil_command,
    circle.add_circle_command,
    status.add_status_command,
    stop.add_stop_command,
    retention.add_gc_command,
    evaluate.add_evaluate_command,
    report.add_report_command,
    track.add_track_command,
    predict.add_predict_command,
    doctor.add_doctor_command,
    completion.add_completion_command,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 is success, 2 wrong input, 130 an interrupt, 1 any other failure.

    Args:
        arguments: words of the command line. By default `sys.argv[1:]`, and the command runs in a
            child process watched by `mtil.process.supervisor`.
    """
    parser = _build_parser()
    if arguments is None:
        answer_shell(parser)
        supervisor.supervise_command("mtil")
    return run_command_line(parser, arguments)


def _build_parser() -> CommandParser:
    parser = CommandParser(
        prog="mtil",
        description="Train one network that outlines breast tumours and classifies them as benign "
        "or malignant.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mtil {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_command in _ADD_COMMANDS:
        add_command(commands)
    return parser
