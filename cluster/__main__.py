"""`python -m cluster`: check, submit, up, down, status and object-store.

Exit codes: 0 for success, 2 for wrong input, 1 for other errors. `submit` returns the job's exit
code.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from cluster import streams
from cluster.errors import ClusterError, UsageError

_BUCKET_HELP = "s3://BUCKET or gs://BUCKET that must be reachable from here"


@streams.with_safe_output
def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
    except UsageError as error:
        return _print_error(error, 2)
    except ClusterError as error:
        return _print_error(error, 1)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("ray", "aiohttp", "jsonschema"):
            raise
        message = f"This command needs `{error.name}`; run `pip install 'mtil[cluster]'`."
        return _print_error(UsageError(message), 2)
    except KeyboardInterrupt:
        return 130
    assert isinstance(code, int)
    return code


def _print_error(error: ClusterError, code: int) -> int:
    for line in str(error).splitlines():
        print(f"cluster: {_escape(line)}", file=sys.stderr)  # noqa: T201
    return code


def _escape(text: str) -> str:
    """Return a text with unprintable characters escaped."""
    # Texts from cluster files could otherwise send control sequences to the terminal.
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster",
        description="Clusters for mtil. See docs/cluster.md for all steps.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check", help="check a cluster file for mistakes, and estimate its cost"
    )
    check.add_argument("file", type=Path)
    check.add_argument("--bucket", help=_BUCKET_HELP)
    check.set_defaults(run=_check)
    for name, summary in (
        ("up", "check a file and bring its cluster up"),
        ("down", "take a cluster down"),
        ("status", "print the resources that a cluster has, uses and waits for"),
    ):
        command = commands.add_parser(name, help=summary)
        command.add_argument("file", type=Path)
        if name != "status":
            command.add_argument("--yes", "-y", action="store_true", help="do not ask")
        if name == "up":
            command.add_argument("--bucket", help=_BUCKET_HELP)
        command.set_defaults(run=_launch)
    _add_submit(commands.add_parser("submit", help="run a command on a cluster"))
    store = commands.add_parser("object-store", help="run a local S3 server until Ctrl-C")
    store.add_argument(
        "--dir", type=Path, default=Path("object-store"), help="folder for the objects"
    )
    store.add_argument("--bucket", default="mtil", help="a bucket to make (mtil)")
    store.add_argument("--port", type=int, default=8333, help="port of the server (8333)")
    store.add_argument(
        "--address",
        default="127.0.0.1",
        help="this machine's address for other machines of the network; the server's keys are not "
        "secret (127.0.0.1)",
    )
    store.add_argument("--cert", type=Path, help="certificate file for the address, for TLS")
    store.add_argument("--key", type=Path, help="key file of the certificate")
    store.set_defaults(run=_object_store)
    return parser


def _add_submit(parser: argparse.ArgumentParser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--cluster", type=Path, help="the cluster's file; the head is reached by ssh"
    )
    where.add_argument("--address", help="URL of the cluster's dashboard (http://127.0.0.1:8265)")
    parser.add_argument(
        "--working-dir",
        type=Path,
        default=Path(),
        help="folder to upload with the job (the current folder)",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="environment variable to pass to the job",
    )
    parser.add_argument("--attach", metavar="JOB", help="follow a running job")
    parser.add_argument("--stop", metavar="JOB", help="end a job")
    parser.add_argument("words", nargs="*", metavar="-- COMMAND", help="the command to run")
    parser.set_defaults(run=_submit)


def _check(options: argparse.Namespace) -> int:
    from cluster.check import check_cluster_file

    report = check_cluster_file(options.file, bucket=options.bucket)
    for problem in report.problems:
        print(f"NO  {_escape(problem)}")  # noqa: T201
    for warning in report.warnings:
        print(f"!!  {_escape(warning)}")  # noqa: T201
    for blank in report.blanks:
        print(f"..  to fill in: {_escape(blank)}")  # noqa: T201
    for note in report.notes:
        print(f"    {note}")  # noqa: T201
    if report.problems:
        raise UsageError(
            f"{options.file} must pass every rule, but has {len(report.problems)} problem(s); see "
            "above."
        )
    print(f"ok  {options.file}")  # noqa: T201
    return 0


def _launch(options: argparse.Namespace) -> int:
    from cluster import launch

    if options.command == "up":
        launch.start_cluster(options.file, yes=options.yes, bucket=options.bucket)
    elif options.command == "down":
        launch.end_cluster(options.file, yes=options.yes)
    else:
        launch.print_cluster_status(options.file)
    return 0


def _submit(options: argparse.Namespace) -> int:
    from cluster import files

    # Clusters from checked files always require a token. Set the mode before Ray is imported.
    if options.cluster is not None:
        name, value = files.TOKEN_MODE.split("=")
        os.environ[name] = value
    from cluster import launch, submit

    direct = nullcontext(options.address or "http://127.0.0.1:8265")
    with launch.open_tunnel(options.cluster) if options.cluster else direct as address:
        if options.stop:
            submit.stop_job(options.stop, address=address)
            return 0
        if options.attach:
            return submit.follow_job(options.attach, address=address)
        return submit.submit_job(
            options.words,
            address=address,
            working_dir=options.working_dir,
            names=options.env,
            machines=options.cluster and files.describe_workers(options.cluster),
        )


def _object_store(options: argparse.Namespace) -> int:
    from cluster.object_store import run_object_store

    if (options.cert is None) != (options.key is None):
        raise UsageError("--cert and --key must be given together, but only one was given.")
    # Exit through the `with` block below, which ends the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with (
        suppress(KeyboardInterrupt),
        run_object_store(
            options.dir.absolute(),
            options.bucket,
            port=options.port,
            address=options.address,
            certificate=(options.cert, options.key) if options.cert else None,
        ) as environment,
    ):
        for name, value in environment.items():
            print(f"export {name}={value}")  # noqa: T201
        print(f"# bucket: s3://{options.bucket}", flush=True)  # noqa: T201
        while True:
            signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
