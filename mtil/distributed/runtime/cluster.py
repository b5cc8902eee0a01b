"""Connecting to Ray, quietly."""

import logging
import os
import re
import secrets
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_logging
from ray._private.services import get_webui_url_from_internal_kv
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group

from mtil.distributed.runtime import preflight
from mtil.distributed.runtime.preflight import Node
from mtil.errors import ResourceError
from mtil.process import interrupts, machine, scratch, supervisor

MACHINES = "MTIL_MACHINES"
"""The environment variable that says which machines the cluster can start, see `preflight`."""

_KNOCK_S = 10
_THREADS_S = 10.0
_KILLED_S = 5.0
_GroupData: Any = gcs_pb2.PlacementGroupTableData  # type: ignore[attr-defined]
_QUIET_ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "LOG_NAME_UPDATE_INTERVAL_S": "3600",  # Ray looks for logs to show ten times a second
}


_LOCAL_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_worker_niceness": "0"}
"""Nobody takes this machine away from a cluster that lives on it, and a training there is no less
urgent than what else runs: Ray would give its workers way to all of that."""


@contextmanager
def connected(*, verbose: bool = False) -> Iterator[None]:
    """Use the cluster of `RAY_ADDRESS`, or one that lives as long as this block.

    A cluster of this block's own keeps its files in a folder of its own, which goes with it, except
    with `verbose`. A signal that arrives while the cluster starts or ends waits until that is done.

    Raises:
        ResourceError: if the cluster of `RAY_ADDRESS` does not answer, or this machine lacks what
            a cluster needs.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in ({} if verbose else _QUIET_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    start = _join(verbose) if is_shared() else _alone(verbose)
    with start:
        if not verbose:
            for name in ("ray", "ray.data", "ray.train"):
                logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are raised as well
            ray_logging.stdout_deduplicator.skip_re = re.compile("")  # what its core tells drivers
        yield


def is_shared() -> bool:
    """Say whether commands use a cluster that lives on when they end."""
    return bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def _join(verbose: bool) -> Iterator[None]:
    """Connect to the cluster of `RAY_ADDRESS` for this block."""
    address = os.environ["RAY_ADDRESS"]
    try:
        try:
            _knock(address)
            _start(verbose, address=address)
        except (OSError, RuntimeError) as error:
            raise ResourceError(
                f"The cluster of RAY_ADDRESS={address} does not answer ({_first_line(error)}); "
                "unset RAY_ADDRESS to run on this machine."
            ) from error
        yield
    finally:
        _stop()


@contextmanager
def _alone(verbose: bool) -> Iterator[None]:
    """Run a cluster of this process's own for this block."""
    for name, value in _LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Ray would write its token into the home folder, and others could read it there
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    machine.require()
    place = machine.place()
    with ExitStack() as stack:
        with interrupts.deferred():
            own = spilled = _own_folder(place.sockets, stack, keep=verbose)
            if place.objects != place.sockets:
                spilled = _own_folder(place.objects, stack)
        try:
            try:
                with _in_background():
                    _start(
                        verbose,
                        address="local",
                        include_dashboard=False,
                        _temp_dir=str(own / machine.RAY_FOLDER),  # Ray lets everybody write to it
                        object_spilling_directory=str(spilled),
                    )
            except Exception as error:
                raise ResourceError(
                    f"Ray does not start on this machine ({_first_line(error)}); `mtil doctor` "
                    "says what it lacks, and `--verbose` shows what Ray says."
                ) from error
            yield
        finally:
            _stop()


def _first_line(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0].rstrip(".")
    return reason or type(error).__name__


def _own_folder(base: Path, stack: ExitStack, *, keep: bool = False) -> Path:
    """Make a folder for Ray that goes with the stack, or with the process if that is killed."""
    scratch.remove_abandoned(base)
    own = stack.enter_context(scratch.folder(base, keep=keep))
    if not keep:
        supervisor.remove_at_end(own)
    return own


def _start(verbose: bool, **options: Any) -> None:
    """Start Ray. It leaves the signals to `mtil.process.interrupts`."""
    with (
        interrupts.deferred(),
        warnings.catch_warnings(),
        nullcontext() if verbose else _muted(),
        _own_signals(),
    ):
        warnings.simplefilter("default" if verbose else "ignore")
        ray.init(
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
            configure_logging=True,
            **options,
        )
        interrupts.renew()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep SIGTERM what it is: Ray would have it exit with its number, in the middle of a line."""
    before = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = before


def _stop() -> None:
    """Disconnect, and end the cluster that this process has started, to its last process."""
    with interrupts.deferred():
        started = _started()
        _wait_for_ray_data()
        ray.shutdown()
        for process in started:
            with suppress(psutil.NoSuchProcess):
                process.kill()  # agents wait for seconds before they miss what they belong to
        psutil.wait_procs(started, timeout=_KILLED_S)


def _started() -> list[psutil.Process]:
    """Return the processes of the cluster that this process has started."""
    node = ray._private.worker._global_node
    found: list[psutil.Process] = []
    groups: list[Any] = [] if node is None else list(node.all_processes.values())
    for infos in groups:
        for info in infos:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(info.process.pid)
                found += [process, *process.children(recursive=True)]
    return found


def _wait_for_ray_data() -> None:
    """See the threads of Ray Data end whose work has been put down.

    Ray's core ends the process, with exit code 1 and no word, if one of them asks it for something
    after it was shut down.
    """
    end = time.monotonic() + _THREADS_S
    for thread in data_threads():
        thread.join(max(0.0, end - time.monotonic()))


def data_threads() -> list[threading.Thread]:
    """Return Ray Data's threads here, but for those that prefetch: they end with the process."""
    found = []
    for thread in threading.enumerate():
        work = type(thread), getattr(thread, "_target", None)
        modules = [getattr(one, "__module__", None) or "" for one in work]
        if thread.name != "Prefetcher" and any(name.startswith("ray.data") for name in modules):
            found.append(thread)
    return found


@contextmanager
def _in_background() -> Iterator[None]:
    """Start processes as batch work: when they wake, they wait for what runs.

    Each of Ray's processes wakes a hundred times a second, and on a small machine each of these
    would otherwise interrupt a thread that the training step waits for.
    """
    _schedule("SCHED_BATCH")
    try:
        yield
    finally:
        to_foreground()


def to_foreground() -> None:
    """Have this thread, and those it starts, run as ordinary work, whatever its parent was."""
    _schedule("SCHED_OTHER")


def _schedule(policy: str) -> None:
    if sys.platform != "linux" or os.sched_getscheduler(0) not in (os.SCHED_OTHER, os.SCHED_BATCH):
        return  # what the user has chosen stays
    os.sched_setscheduler(0, getattr(os, policy), os.sched_param(0))


def _knock(address: str) -> None:
    """Raise OSError if nobody listens at `host:port`: Ray would ask for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()


@contextmanager
def _muted() -> Iterator[None]:
    """Keep what Ray's core writes to stderr, past Python's logging, from the user's screen."""
    sys.stderr.flush()
    screen = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(screen, 2)
        os.close(screen)
        os.close(nowhere)


def nodes() -> list[Node]:
    """Return what the cluster's nodes offer, those included that it starts when they are needed.

    Nothing in Ray says which these are; `MTIL_MACHINES` does.

    Raises:
        ResourceError: if that is not what it must be.
    """
    live = live_nodes()
    machines = os.environ.get(MACHINES)
    return live + preflight.to_come(live, machines) if machines else live


def live_nodes() -> list[Node]:
    """Return what the live nodes of the cluster offer in all."""
    return [
        Node(cpus=node["Resources"].get("CPU", 0.0), gpus=node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def has_dashboard() -> bool:
    """Say whether the cluster has a dashboard, which is also what Ray asks about its actors."""
    return bool(get_webui_url_from_internal_kv())  # type: ignore[no-untyped-call]


def free_orphans() -> None:
    """Remove the placement groups that dead actors of this job have left behind.

    Ray frees them when the job ends, but not before: a training whose controller is killed while
    it starts holds its workers' CPUs until then.
    """
    state = ray._private.state.state
    accessor = state._connect_and_get_accessor()
    job, nobody = ray.get_runtime_context().get_job_id(), ray.ActorID.nil().binary()
    for data in accessor.get_placement_group_table():
        group = _GroupData.FromString(data)
        made_by_actor = group.creator_actor_id != nobody  # of others Ray says that none lives
        orphaned = group.creator_job_id.hex() == job and made_by_actor and group.creator_actor_dead
        if orphaned and not group.is_detached and group.state != _GroupData.REMOVED:
            identity = ray.PlacementGroupID(group.placement_group_id)
            remove_placement_group(PlacementGroup(identity))
