"""Connect to Ray, or start and stop a local Ray cluster, without output of Ray."""

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
from mtil.distributed.runtime.preflight import NodeResources
from mtil.errors import ResourceError
from mtil.process import interrupts, machine, scratch, supervisor

MACHINES_VARIABLE = "MTIL_MACHINES"
"""Environment variable describing the machines that the cluster can start. See `preflight`."""

_CONNECT_TIMEOUT_S = 10
_JOIN_TIMEOUT_S = 10.0
_KILL_TIMEOUT_S = 5.0
_GroupData: Any = gcs_pb2.PlacementGroupTableData  # type: ignore[attr-defined]
_QUIET_ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # By default Ray searches for new log files ten times a second. No log is shown here.
    "LOG_NAME_UPDATE_INTERVAL_S": "3600",
}


_LOCAL_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_worker_niceness": "0"}
"""Settings of a local cluster: no preemption exists, and training has normal priority. By default
Ray raises the niceness of its workers."""


@contextmanager
def connect_ray(*, verbose: bool = False) -> Iterator[None]:
    """Connect to the cluster of `RAY_ADDRESS`, or run a local cluster for the block.

    A local cluster has a private folder, deleted at the end unless `verbose`. Signals arriving
    during start or stop are delivered afterwards. With an existing connection the block just runs.

    Args:
        verbose: show the output of Ray.

    Raises:
        ResourceError: if the cluster of `RAY_ADDRESS` does not answer, or the local machine lacks a
            requirement of Ray.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in ({} if verbose else _QUIET_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    connection = (
        _connect_to_shared(verbose) if uses_shared_cluster() else _run_local_cluster(verbose)
    )
    with connection:
        if not verbose:
            for name in ("ray", "ray.data", "ray.train"):
                # Ray raises every error that it logs: the log would repeat the exception.
                logging.getLogger(name).setLevel(logging.CRITICAL)
            # Skip all lines that Ray's core prints on the driver's stdout.
            ray_logging.stdout_deduplicator.skip_re = re.compile("")
        yield


def uses_shared_cluster() -> bool:
    """Return True if `RAY_ADDRESS` names a cluster, which outlives the command."""
    return bool(os.environ.get("RAY_ADDRESS"))


@contextmanager
def _connect_to_shared(verbose: bool) -> Iterator[None]:
    """Connect to the cluster of `RAY_ADDRESS` for the block."""
    address = os.environ["RAY_ADDRESS"]
    try:
        try:
            _check_reachable(address)
            _init_ray(verbose, address=address)
        except (OSError, RuntimeError) as error:
            raise ResourceError(
                f"The cluster of RAY_ADDRESS={address} does not answer ({_first_line(error)}). "
                "Unset RAY_ADDRESS to run on the local machine."
            ) from error
        yield
    finally:
        _shut_down_ray()


@contextmanager
def _run_local_cluster(verbose: bool) -> Iterator[None]:
    """Run a local cluster for the block."""
    for name, value in _LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Without a token in the environment, Ray writes one into the home folder, readable by other
    # users of the machine.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    machine.require_machine()
    base_folders = machine.choose_ray_folders()
    with ExitStack() as stack:
        with interrupts.defer_signals():
            cluster_folder = spill_folder = _make_folder(base_folders.sockets, stack, keep=verbose)
            if base_folders.objects != base_folders.sockets:
                spill_folder = _make_folder(base_folders.objects, stack)
        try:
            try:
                with _batch_scheduling():
                    _init_ray(
                        verbose,
                        address="local",
                        include_dashboard=False,
                        # Ray makes the folder world-writable: keep inside the private folder.
                        _temp_dir=str(cluster_folder / machine.RAY_FOLDER_NAME),
                        object_spilling_directory=str(spill_folder),
                    )
            except Exception as error:
                raise ResourceError(
                    f"Ray does not start on the local machine ({_first_line(error)}). Run "
                    "`mtil doctor` for missing requirements, or add `--verbose` for Ray's output."
                ) from error
            yield
        finally:
            _shut_down_ray()


def _first_line(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0].rstrip(".")
    return reason or type(error).__name__


def _make_folder(base: Path, stack: ExitStack, *, keep: bool = False) -> Path:
    """Create a temporary folder for Ray, deleted with the stack or after a kill of the process."""
    scratch.remove_abandoned(base)
    folder = stack.enter_context(scratch.create_scratch_folder(base, keep=keep))
    if not keep:
        supervisor.remove_at_end(folder)
    return folder


def _init_ray(verbose: bool, **options: Any) -> None:
    """Start Ray, with signal handling left to `mtil.process.interrupts`."""
    with (
        interrupts.defer_signals(),
        warnings.catch_warnings(),
        nullcontext() if verbose else _muted_stderr(),
        _without_ray_sigterm_handler(),
    ):
        warnings.simplefilter("default" if verbose else "ignore")
        ray.init(
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.ERROR,
            configure_logging=True,
            **options,
        )
        # Ray's core replaces signal handlers below Python; its handlers end the process.
        interrupts.reinstall_handlers()


@contextmanager
def _without_ray_sigterm_handler() -> Iterator[None]:
    """Keep Ray from installing a SIGTERM handler.

    The handler of Ray would exit the process with the signal number, in the middle of a line.
    """
    original = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = original


def _shut_down_ray() -> None:
    """Disconnect, and kill all processes of a local cluster."""
    with interrupts.defer_signals():
        # Listed before the shutdown, which forgets the processes.
        processes = _local_processes()
        _join_ray_data_threads()
        ray.shutdown()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                # Ray's agents notice the end of the cluster only after seconds.
                process.kill()
        psutil.wait_procs(processes, timeout=_KILL_TIMEOUT_S)


def _local_processes() -> list[psutil.Process]:
    """Return the processes of the local cluster, with all descendants."""
    node = ray._private.worker._global_node
    processes: list[psutil.Process] = []
    process_groups: list[Any] = [] if node is None else list(node.all_processes.values())
    for infos in process_groups:
        for info in infos:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(info.process.pid)
                processes += [process, *process.children(recursive=True)]
    return processes


def _join_ray_data_threads() -> None:
    """Wait until Ray Data's threads of abandoned work have ended.

    Ray's core ends the process with exit code 1 and no message if a thread uses Ray after shutdown.
    """
    end = time.monotonic() + _JOIN_TIMEOUT_S
    for thread in list_ray_data_threads():
        thread.join(max(0.0, end - time.monotonic()))


def list_ray_data_threads() -> list[threading.Thread]:
    """Return the live threads of Ray Data, without prefetchers, which end with the process."""
    threads = []
    for thread in threading.enumerate():
        thread_type_and_target = type(thread), getattr(thread, "_target", None)
        modules = [getattr(part, "__module__", None) or "" for part in thread_type_and_target]
        if thread.name != "Prefetcher" and any(name.startswith("ray.data") for name in modules):
            threads.append(thread)
    return threads


@contextmanager
def _batch_scheduling() -> Iterator[None]:
    """Start processes with the SCHED_BATCH policy: a waking process preempts no thread.

    Each Ray process wakes a hundred times a second. On a small machine, every wake-up would
    otherwise interrupt a thread needed by the training step.
    """
    _set_scheduling_policy("SCHED_BATCH")
    try:
        yield
    finally:
        set_normal_scheduling()


def set_normal_scheduling() -> None:
    """Set the normal scheduling policy for the calling thread and future children."""
    _set_scheduling_policy("SCHED_OTHER")


def _set_scheduling_policy(policy: str) -> None:
    if sys.platform != "linux" or os.sched_getscheduler(0) not in (os.SCHED_OTHER, os.SCHED_BATCH):
        # A policy chosen by the user stays.
        return
    os.sched_setscheduler(0, getattr(os, policy), os.sched_param(0))


def _check_reachable(address: str) -> None:
    """Raise OSError if `host:port` is unreachable: Ray itself would retry for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Discard stderr at file descriptor level. Ray's core writes past Python's logging."""
    sys.stderr.flush()
    saved_stderr = os.dup(2)
    null_device = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null_device, 2)
        yield
    finally:
        os.dup2(saved_stderr, 2)
        os.close(saved_stderr)
        os.close(null_device)


def list_nodes() -> list[NodeResources]:
    """Return the resources of all nodes, including nodes that the cluster can start on demand.

    Ray cannot list startable nodes, so the environment variable `MTIL_MACHINES` names them.

    Raises:
        ResourceError: if `MTIL_MACHINES` is malformed.
    """
    live = list_live_nodes()
    machines = os.environ.get(MACHINES_VARIABLE)
    return live + preflight.list_startable_nodes(live, machines) if machines else live


def list_live_nodes() -> list[NodeResources]:
    """Return the total resources of the live nodes."""
    return [
        NodeResources(
            cpus=node["Resources"].get("CPU", 0.0), gpus=node["Resources"].get("GPU", 0.0)
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def has_dashboard() -> bool:
    """Return True if the cluster has a dashboard. Ray needs the dashboard to list actors."""
    return bool(get_webui_url_from_internal_kv())  # type: ignore[no-untyped-call]


def find_session_folder() -> Path | None:
    """Return Ray's session folder in a task or actor, None in a command.

    A cancelled task cannot remove its files. Those in the session folder go with the cluster.
    """
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return None
    return Path(context.get_temp_dir()) / context.get_session_name()


def free_orphaned_groups() -> None:
    """Remove placement groups left behind by dead actors of the current job.

    Ray frees the groups only at the end of the job. Until then, a training whose controller was
    killed during startup holds the CPUs of its workers.
    """
    state = ray._private.state.state
    accessor = state._connect_and_get_accessor()
    job, nil_actor_id = ray.get_runtime_context().get_job_id(), ray.ActorID.nil().binary()
    for data in accessor.get_placement_group_table():
        group = _GroupData.FromString(data)
        # Ray reports the creator as dead for groups made outside actors, too.
        made_by_actor = group.creator_actor_id != nil_actor_id
        orphaned = group.creator_job_id.hex() == job and made_by_actor and group.creator_actor_dead
        if orphaned and not group.is_detached and group.state != _GroupData.REMOVED:
            group_id = ray.PlacementGroupID(group.placement_group_id)
            remove_placement_group(PlacementGroup(group_id))
