"""`python -m cluster object-store`: a local S3 server with a bucket, until Ctrl-C."""

import argparse
import signal
import sys
from pathlib import Path

from cluster.object_store import ObjectStoreError, running


def main() -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    store = commands.add_parser("object-store", help="run a local S3 server until Ctrl-C")
    store.add_argument(
        "--dir", type=Path, default=Path("object-store"), help="where objects are kept"
    )
    store.add_argument("--bucket", default="mtil", help="a bucket to make (mtil)")
    store.add_argument("--port", type=int, default=8333, help="port on 127.0.0.1 (8333)")
    options = parser.parse_args()
    try:
        with running(options.dir.absolute(), options.bucket, port=options.port) as environment:
            for name, value in environment.items():
                print(f"export {name}={value}")  # noqa: T201
            print(f"# bucket: s3://{options.bucket}", flush=True)  # noqa: T201
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
    except ObjectStoreError as error:
        print(f"cluster: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
