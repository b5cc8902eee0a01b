"""Files of a run that no later step reads: found, listed, and deleted on request. No Ray.

Only names that a run itself writes are looked at, and no link is followed. Nothing that the ledger
or a result names goes, except maps that every action which reads them has read; an action that
needs such a map after all has it written again. A training loses nothing unless the model that its
result names is there, byte for byte. Of a run without a ledger, where nobody can tell whether a
process is at work, only the folders of trainings that have ended are looked at.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from mtil.circle import heartbeat, ledger
from mtil.circle.ledger import Ledger
from mtil.circle.state import State, is_over
from mtil.data.dataset import manifest as manifests
from mtil.errors import DataError, NotFoundError
from mtil.run import names
from mtil.run.folder import Run
from mtil.run.plan import Train, WriteMaps, actions, reads_maps_of
from mtil.storage import PARTIAL_NAME, Store

_PROBE = re.compile(rf"{ledger.PROBE_FOLDER}/[0-9a-f]{{16}}")
_PARTIAL = re.compile(
    rf"(?:(?:{ledger.FOLDER}|{ledger.PROBE_FOLDER}|{names.FOLDERS})/)?{PARTIAL_NAME}"
)
"""A write that was interrupted, in the folders that a run writes files to."""
_LOOKED_AT = (names.TRAININGS, names.MAPS, ledger.FOLDER, ledger.PROBE_FOLDER)
_WHOLES = (names.RUN, manifests.FILE_NAME)
"""A folder below the run's with one of these is another run or a data set."""
_NUM_DELETERS = 16


@dataclass(frozen=True, kw_only=True)
class Superseded:
    """Files of one folder that nobody needs, for one reason."""

    why: str
    folder: str
    files: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a run did not need when its ledger had so many events."""

    superseded: tuple[Superseded, ...]
    number: int
    """The latest event of the ledger; 0 without one."""
    left: tuple[str, ...] = ()
    """A sentence for everything that is left alone since it cannot be trusted."""

    @property
    def num_files(self) -> int:
        """How many files there are."""
        return sum(len(one.files) for one in self.superseded)

    @property
    def bytes(self) -> int:
        """What they take together."""
        return sum(one.bytes for one in self.superseded)


def find(run: Run) -> Finding:
    """Return what a run does not need any more, ordered by folder.

    Raises:
        DataError: if a coordinator is at work on the run, or a result is not one.
        LedgerError: if its ledger is damaged.
    """
    state = Ledger.open(run.store).state
    if heartbeat.is_beating(run.store):
        raise DataError(
            f"A run must be at rest to be tidied, but a coordinator is at work on {run.uri}; "
            f"wait for its end, or end it with `mtil stop --run {run.uri}`."
        )
    listing = run.store.deletable()
    sizes = _own(listing.sizes)
    left = [
        f"{name} is a link or no regular file; mtil follows no link and leaves it alone."
        for name in listing.left
        if name.split("/")[0] in _LOOKED_AT
    ]
    reasons = dict(_of_trainings(run, state, sizes, left))
    if state is not None:
        reasons |= _read_maps(run, state, sizes)
        reasons |= {name: "ledger probe" for name in sizes if _PROBE.fullmatch(name)}
        if _is_settled(state):
            reasons |= {name: "interrupted write" for name in sizes if _PARTIAL.fullmatch(name)}
    found: dict[tuple[str, str], list[str]] = {}
    for name, why in reasons.items():
        found.setdefault((str(PurePosixPath(name).parent), why), []).append(name)
    return Finding(
        superseded=tuple(
            Superseded(
                why=why,
                folder=folder,
                files=tuple(sorted(files)),
                bytes=sum(sizes[name] for name in files),
            )
            for (folder, why), files in sorted(found.items())
        ),
        number=0 if state is None else state.number,
        left=tuple(left),
    )


def delete(run: Run, found: Finding) -> None:
    """Delete what was found.

    Raises:
        DataError: if the run has gone on since.
    """
    state = Ledger.open(run.store).state
    if (0 if state is None else state.number) != found.number:
        raise DataError(
            f"A run must be at rest to be tidied, but {run.uri} has gone on; try again later."
        )
    files = [name for one in found.superseded for name in one.files]
    with ThreadPoolExecutor(_NUM_DELETERS) as deleters:
        list(deleters.map(run.store.delete, files))


def _is_settled(state: State) -> bool:
    """Say whether no process of an attempt in flight can be writing still."""
    return state.stopped or is_over(state) or not state.running


def _own(sizes: Mapping[str, int]) -> Mapping[str, int]:
    """Return the files without those of other runs and of data sets in folders of the run."""
    others = {
        str(PurePosixPath(name).parent)
        for name in sizes
        if "/" in name and PurePosixPath(name).name in _WHOLES
    }
    is_dataset = any(name.split("/")[0] in ("dataset.json", "staging", "shards") for name in sizes)
    return {
        name: size
        for name, size in sizes.items()
        if not others.intersection(str(folder) for folder in PurePosixPath(name).parents)
        and not (is_dataset and "/" not in name)  # a preparation may be writing it
    }


def _of_trainings(
    run: Run, state: State | None, files: Iterable[str], left: list[str]
) -> Iterator[tuple[str, str]]:
    """Yield what trainings do not need, and why; note in `left` whose models are in doubt."""
    by_training: dict[Train, list[str]] = {}
    for name in files:
        of = names.training_of(name)
        if of is not None and names.is_deletable(name):
            by_training.setdefault(of, []).append(name)
    for of, own in by_training.items():
        result = run.result(of)
        if result is None and (state is None or not _is_settled(state)):
            continue
        named = _named_models(run, state, of)
        superseded = {
            name: "unnamed model" if is_model else "ended training"
            for name in own
            for is_model in [names.is_model(name)]
            if (name not in named if is_model else result is not None)
        }
        if not superseded:
            continue
        missing = [n for n, sha256 in named.items() if not _is_there(run.store, n, sha256)]
        if missing:
            left.append(
                f"{missing[0]} is not there with the sha256 that the run names; everything in "
                f"{run.folder(of)} is left alone."
            )
        elif named:
            yield from superseded.items()


def _named_models(run: Run, state: State | None, of: Train) -> dict[str, str]:
    """Return the sha256 of the models that a training's result and the ledger name, by file."""
    said = {} if state is None else state.done.get(of, {})
    found = [said.get("model_sha256")]
    result = run.result(of)
    if result is not None:
        found.append(result.model_sha256)
    return {names.model(of, sha256): sha256 for sha256 in found if isinstance(sha256, str)}


def _is_there(store: Store, name: str, sha256: str) -> bool:
    """Say whether a file has the bytes that its sha256 says."""
    found = hashlib.sha256()
    try:
        for chunk in store.chunks(name):
            found.update(chunk)
    except NotFoundError:
        return False
    return found.hexdigest() == sha256


def _read_maps(run: Run, state: State, files: Iterable[str]) -> Mapping[str, str]:
    """Return the map shards that every action which reads them has read."""
    unread: dict[WriteMaps, bool] = {}
    for action in actions(state.plan):
        for writer in reads_maps_of(state.plan, action):
            unread[writer] = unread.get(writer, False) or action not in state.done
    folders = {run.map_folder(writer) for writer, is_unread in unread.items() if not is_unread}
    return {name: "maps that were read" for name in files if names.map_folder_of(name) in folders}
