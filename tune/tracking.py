"""Show a search in trackers: the search, its trials, and the trainings of each trial.

`python -m tune.tracking URI TARGET` follows a search until standard input ends.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from optuna.study import Study

from mtil.report.page import render_page
from mtil.run import names
from mtil.run.folder import Run
from mtil.storage import open_store
from mtil.tracking.follower import follow_until_closed
from mtil.tracking.nodes import Artefact, Node, make_facts, make_key
from mtil.tracking.runs import RunReader
from mtil.tracking.targets import parse_target
from tune import study as studies
from tune.record import SEARCH_FILE, Search
from tune.report import build_report
from tune.space import to_overrides
from tune.study import TrialRecord

_ENDED = ("completed", "stopped early", "failed")


@dataclass
class SearchFollower:
    """Reads a search that may not exist yet, as `mtil.tracking.follower` asks."""

    uri: str
    _runs: dict[int, RunReader] = field(default_factory=dict, init=False)

    def read(self, is_last: bool) -> list[Node]:
        """Return the nodes of the search, at the end with a report; none before it exists."""
        if not open_store(self.uri).exists(SEARCH_FILE):
            return []
        search = Search.open(self.uri)
        study = studies.find_study(search)
        trials = [] if study is None else studies.list_trials(study)
        root = _make_root(search, study, trials, is_last=is_last)
        nodes = [root]
        for trial in trials:
            nodes += self._read_trial(search, root, trial)
        return nodes

    def _read_trial(self, search: Search, root: Node, trial: TrialRecord) -> list[Node]:
        """Return the nodes of a trial and its trainings."""
        path = (f"trial {trial.number:04d}",)
        reader = self._runs.get(trial.number)
        if reader is None and open_store(search.trial_uri(trial.number)).exists(names.RUN):
            reader = RunReader(
                Run.open(search.trial_uri(trial.number)),
                path=path,
                key=make_key(root.key, *path),
                facts=to_overrides(trial.point),
            )
            self._runs[trial.number] = reader
        nodes = [] if reader is None else reader.read()
        if not nodes:
            nodes = [Node(path=path, key=make_key(root.key, *path), name=path[0])]
        goals = zip(search.objective.names, trial.values or [], strict=False)
        nodes[0] = replace(
            nodes[0],
            figures={**nodes[0].figures, **{f"objective/{name}": value for name, value in goals}},
        )
        # A trial that was stopped early has trainings without a result.
        has_ended = trial.state in _ENDED
        return [replace(node, is_finished=has_ended) for node in nodes]


def _make_root(
    search: Search, study: Study | None, trials: Sequence[TrialRecord], *, is_last: bool
) -> Node:
    artefacts, figures = {}, {}
    completed = [trial for trial in trials if trial.values is not None]
    if study is not None and completed:
        best = studies.select_best(study, 1)[0]
        goals = zip(search.objective.names, best.values or [], strict=True)
        figures = {f"best/{name}": value for name, value in goals}
        if is_last:
            version = hashlib.sha256(repr(trials).encode()).hexdigest()
            artefacts["report.html"] = Artefact(
                version=version, read=lambda: render_page(build_report(search, study)).encode()
            )
    ended = [trial for trial in trials if trial.state in _ENDED]
    asked = asdict(search.asked)
    config = make_facts(asked.pop("config"))
    return Node(
        path=(),
        key=make_key(search.uri, search.asked.study, search.asked.fingerprint),
        name=search.asked.study,
        facts={**config, **make_facts(asked, "search.")},
        figures=figures | {"trials/ended": float(len(ended))},
        artefacts=artefacts,
        is_finished=bool(trials) and len(ended) == len(trials),
    )


if __name__ == "__main__":
    follow_until_closed(
        SearchFollower(sys.argv[1]).read, parse_target(sys.argv[2]), name="mtil-tune"
    )
