"""What a run keeps but needs no more: found, told, and deleted on request. No Ray.

Nothing that the ledger or a result names goes, except maps that every action which reads them has
read; whoever needs one of those after all has it written again. Of a run without a ledger, where
nobody can tell who is at work, only the folders of trainings that have ended are looked at.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from mtil import heartbeat, ledger
from mtil.circle import State, is_over
from mtil.errors import DataError
from mtil.ledger import Ledger
from mtil.plan import Train, WriteMaps, actions, reads_maps_of
from mtil.run import Run
from mtil.storage import is_partial

_OF_TRAINING = re.compile(r"rounds/(\d+)/fold-(\d+)(?:/part-(\d+))?/(checkpoints/.+|[^/]+)")
_MODEL = re.compile(r"model-[0-9a-f]+\.pt")
_STEP = "step.json"
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
    sizes = run.store.sizes()
    reasons = dict(_of_trainings(run, state, sizes))
    if state is not None:
        reasons |= _read_maps(run, state, sizes)
        reasons |= {
            name: "ledger probe" for name in sizes if name.startswith(f"{ledger.PROBE_FOLDER}/")
        }
        if _is_settled(state):
            reasons |= {name: "interrupted write" for name in sizes if is_partial(name)}
    found: dict[tuple[str, str], list[str]] = {}
    for name, why in reasons.items():
        found.setdefault((str(PurePosixPath(name).parent), why), []).append(name)
    return Finding(
        superseded=tuple(
            Superseded(
                why=why,
                folder=folder,
                files=tuple(sorted(names)),
                bytes=sum(sizes[name] for name in names),
            )
            for (folder, why), names in sorted(found.items())
        ),
        number=0 if state is None else state.number,
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
    names = [name for one in found.superseded for name in one.files]
    with ThreadPoolExecutor(_NUM_DELETERS) as deleters:
        list(deleters.map(run.store.delete, names))


def _is_settled(state: State) -> bool:
    """Say whether no process of an attempt in flight can be writing still."""
    return state.stopped or is_over(state) or not state.running


def _of_trainings(run: Run, state: State | None, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    files: dict[Train, dict[str, str]] = {}
    for name in names:
        match = _OF_TRAINING.fullmatch(name)
        if match and not is_partial(name):
            part = None if match[3] is None else int(match[3])
            of = Train(int(match[1]), int(match[2]), part)
            files.setdefault(of, {})[name] = match[4]
    for of, kinds in files.items():
        result = run.result(of)
        if result is None and (state is None or not _is_settled(state)):
            continue
        named = {_ledger_model(run, state, of)}
        if result is not None:
            named.add(run.model_name(of, result))
        for name, kind in kinds.items():
            if _MODEL.fullmatch(kind):
                if name not in named:
                    yield name, "unnamed model"
            elif result is not None and (kind == _STEP or kind.startswith("checkpoints/")):
                yield name, "ended training"


def _ledger_model(run: Run, state: State | None, of: Train) -> str | None:
    """Return the name of the model that the ledger says a training has made."""
    result = {} if state is None else state.done.get(of, {})
    sha256 = result.get("model_sha256")
    return f"{run.folder(of)}/model-{sha256[:12]}.pt" if isinstance(sha256, str) else None


def _read_maps(run: Run, state: State, names: Iterable[str]) -> Mapping[str, str]:
    """Return the map shards that every action which reads them has read."""
    unread: dict[WriteMaps, bool] = {}
    for action in actions(state.plan):
        for writer in reads_maps_of(state.plan, action):
            unread[writer] = unread.get(writer, False) or action not in state.done
    folders = {run.map_folder(writer) for writer, is_unread in unread.items() if not is_unread}
    return {
        name: "maps that were read"
        for name in names
        if str(PurePosixPath(name).parent) in folders and not is_partial(name)
    }
