"""Find, list and delete files of a run that no later step reads. No Ray.

Rules:

- Only file names written by mtil are considered, and no link is followed.
- Files named in the ledger or in a result stay. Exception: maps that all their readers have read.
  An action that needs deleted maps after all writes them again.
- Files of a training are deleted only if the model named in the result exists, byte for byte.
- In a run without a ledger, nothing tells whether a process is active. Only folders of finished
  trainings are considered.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from mtil.circle import heartbeat, ledger
from mtil.circle.ledger import Ledger
from mtil.circle.state import CircleState, is_finished
from mtil.data.dataset import manifest as manifests
from mtil.errors import DataError, NotFoundError
from mtil.run import names
from mtil.run.folder import Run
from mtil.run.plan import Train, WriteMaps, find_map_writers, list_actions
from mtil.storage import PARTIAL_NAME_PATTERN, Store

_PROBE = re.compile(rf"{ledger.LEDGER_PROBE_FOLDER}/[0-9a-f]{{16}}")
_PARTIAL = re.compile(
    rf"(?:(?:{ledger.LEDGER_FOLDER}|{ledger.LEDGER_PROBE_FOLDER}|{names.FOLDERS})/)?{PARTIAL_NAME_PATTERN}"
)
"""Name of an interrupted write, in the folders where a run writes files."""
_RUN_FOLDERS = (names.TRAININGS, names.MAPS, ledger.LEDGER_FOLDER, ledger.LEDGER_PROBE_FOLDER)
_ROOT_MARKERS = (names.RUN, manifests.FILE_NAME)
"""Files marking a folder below the run as a separate run or data set."""
_NUM_DELETERS = 16


@dataclass(frozen=True, kw_only=True)
class SupersededFiles:
    """Unneeded files of a folder, for one reason."""

    why: str
    folder: str
    files: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class RetentionFinding:
    """Unneeded files of a run at a given ledger event."""

    superseded: tuple[SupersededFiles, ...]
    number: int
    """Number of the latest ledger event; 0 without a ledger."""
    left: tuple[str, ...] = ()
    """Sentences about files that are kept because they cannot be trusted."""

    @property
    def num_files(self) -> int:
        """Number of unneeded files."""
        return sum(len(group.files) for group in self.superseded)

    @property
    def bytes(self) -> int:
        """Total size of the unneeded files in bytes."""
        return sum(group.bytes for group in self.superseded)


def find_superseded_files(run: Run) -> RetentionFinding:
    """Return the unneeded files of a run, ordered by folder.

    Raises:
        DataError: if a coordinator is active on the run, or a result is damaged.
        LedgerError: if the ledger is damaged.
    """
    state = Ledger.open(run.store).state
    if heartbeat.is_coordinator_alive(run.store):
        raise DataError(
            f"Cannot clean up {run.uri} while a coordinator is active. Wait for the end of the "
            f"run, or stop it with `mtil stop --run {run.uri}`."
        )
    listing = run.store.deletable()
    sizes = _exclude_foreign_files(listing.sizes)
    left = [
        f"{name} is a link or no regular file. mtil follows no link and keeps the file."
        for name in listing.left
        if name.split("/")[0] in _RUN_FOLDERS
    ]
    reasons = dict(_find_training_files(run, state, sizes, left))
    if state is not None:
        reasons |= _find_read_maps(run, state, sizes)
        reasons |= {name: "ledger probe" for name in sizes if _PROBE.fullmatch(name)}
        if _is_settled(state):
            reasons |= {name: "interrupted write" for name in sizes if _PARTIAL.fullmatch(name)}
    groups: dict[tuple[str, str], list[str]] = {}
    for name, why in reasons.items():
        groups.setdefault((str(PurePosixPath(name).parent), why), []).append(name)
    return RetentionFinding(
        superseded=tuple(
            SupersededFiles(
                why=why,
                folder=folder,
                files=tuple(sorted(files)),
                bytes=sum(sizes[name] for name in files),
            )
            for (folder, why), files in sorted(groups.items())
        ),
        number=0 if state is None else state.number,
        left=tuple(left),
    )


def delete_superseded_files(run: Run, finding: RetentionFinding) -> None:
    """Delete the files of a finding.

    Raises:
        DataError: if the ledger has new events since `find_superseded_files`.
    """
    state = Ledger.open(run.store).state
    if (0 if state is None else state.number) != finding.number:
        raise DataError(
            f"Cannot clean up {run.uri}: the run has continued since the search. Try again later."
        )
    files = [name for group in finding.superseded for name in group.files]
    with ThreadPoolExecutor(_NUM_DELETERS) as deleters:
        list(deleters.map(run.store.delete, files))


def _is_settled(state: CircleState) -> bool:
    """Return True if no process of an attempt in flight can still be writing."""
    return state.stopped or is_finished(state) or not state.running


def _exclude_foreign_files(sizes: Mapping[str, int]) -> Mapping[str, int]:
    """Exclude files of foreign runs and data sets in subfolders of the run."""
    others = {
        str(PurePosixPath(name).parent)
        for name in sizes
        if "/" in name and PurePosixPath(name).name in _ROOT_MARKERS
    }
    is_dataset = any(name.split("/")[0] in ("dataset.json", "staging", "shards") for name in sizes)
    return {
        name: size
        for name, size in sizes.items()
        if not others.intersection(str(folder) for folder in PurePosixPath(name).parents)
        # A preparation may be writing files beside a data set's manifest.
        and not (is_dataset and "/" not in name)
    }


def _find_training_files(
    run: Run, state: CircleState | None, files: Iterable[str], left: list[str]
) -> Iterator[tuple[str, str]]:
    """Yield unneeded training files with the reason. Append models in doubt to `left`."""
    by_training: dict[Train, list[str]] = {}
    for name in files:
        training = names.parse_training(name)
        if training is not None and names.is_deletable(name):
            by_training.setdefault(training, []).append(name)
    for training, training_files in by_training.items():
        result = run.result(training)
        # Without a result the training may still run. Only a settled ledger proves the opposite.
        if result is None and (state is None or not _is_settled(state)):
            continue
        named = _named_models(run, state, training)
        superseded = {
            name: "unnamed model" if is_model else "ended training"
            for name in training_files
            for is_model in [names.is_model(name)]
            if (name not in named if is_model else result is not None)
        }
        if not superseded:
            continue
        missing = [n for n, sha256 in named.items() if not _has_digest(run.store, n, sha256)]
        if missing:
            left.append(
                f"{missing[0]} is missing or has not the sha256 named in the run. All files in "
                f"{run.folder(training)} are kept."
            )
        elif named:
            yield from superseded.items()


def _named_models(run: Run, state: CircleState | None, training: Train) -> dict[str, str]:
    """Map the model files named in the ledger and in the result to their sha256."""
    ledger_result = {} if state is None else state.done.get(training, {})
    digests = [ledger_result.get("model_sha256")]
    result = run.result(training)
    if result is not None:
        digests.append(result.model_sha256)
    return {
        names.model_name(training, sha256): sha256 for sha256 in digests if isinstance(sha256, str)
    }


def _has_digest(store: Store, name: str, sha256: str) -> bool:
    """Return True if a file exists with the given sha256."""
    digest = hashlib.sha256()
    try:
        for chunk in store.chunks(name):
            digest.update(chunk)
    except NotFoundError:
        return False
    return digest.hexdigest() == sha256


def _find_read_maps(run: Run, state: CircleState, files: Iterable[str]) -> Mapping[str, str]:
    """Return the map shards already read by all their readers, with the reason."""
    unread: dict[WriteMaps, bool] = {}
    for action in list_actions(state.plan):
        for writer in find_map_writers(state.plan, action):
            unread[writer] = unread.get(writer, False) or action not in state.done
    folders = {run.map_folder(writer) for writer, is_unread in unread.items() if not is_unread}
    return {
        name: "maps that were read" for name in files if names.parse_map_folder(name) in folders
    }
