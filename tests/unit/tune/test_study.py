import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mtil.config import Config, config_to_dict
from mtil.errors import ConfigError, DataError, StorageError
from tests.searches import create_search
from tune import space as spaces
from tune import study as studies
from tune.record import Search, SearchRequest, StoppingRule, TrialBudget
from tune.study import EarlyStopper

POINT = {"loss.weighting": "uncertainty", "loss.dice": 0.5}
SPREAD: dict[str, Any] = {
    "loss.weighting": optuna.distributions.CategoricalDistribution(("fixed", "uncertainty")),
    "loss.dice": optuna.distributions.FloatDistribution(0.2, 0.8),
}


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return create_search(
        str(tmp_path / "search"),
        SearchRequest(
            data="/data",
            fingerprint="f" * 64,
            config=config_to_dict(Config()),
            budget=vars(TrialBudget()),
            space=["loss"],
            narrowing={},
            objective="dice",
            sampler="tpe",
            seed=0,
            rule=vars(StoppingRule()),
            storage=None,
            study="s",
        ),
    )


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "study.journal"


def _study(where: Path | str, directions: int = 1) -> optuna.Study:
    return optuna.create_study(
        study_name="s",
        storage=studies.open_storage(str(where)),
        directions=["maximize"] * directions,
        load_if_exists=True,
    )


def _add(study: optuna.Study, *values: float, dice: float = 0.5, **attributes: Any) -> None:
    study.add_trial(
        optuna.trial.create_trial(
            params=POINT | {"loss.dice": dice},
            distributions=SPREAD,
            values=list(values) or None,
            state=TrialState.COMPLETE if values else TrialState.FAIL,
            user_attrs=attributes,
        )
    )


def _ask(study: optuna.Study, kind: Any = "tpe", seed: int = 0) -> optuna.Trial:
    number = len(study.get_trials(deepcopy=False))
    study.sampler = studies.make_sampler(kind, seed, number)
    with studies.suppress_library_warnings():
        return study.ask()


def test_a_line_that_was_cut_off_is_forgotten(journal: Path) -> None:
    study = _study(journal)
    _add(study, 0.5)
    whole = journal.read_bytes()
    piece = b'{"op_code": 4, "work'
    journal.write_bytes(whole + piece)
    read = optuna.load_study(study_name="s", storage=studies.open_storage(str(journal)))
    assert [trial.value for trial in read.trials] == [0.5]
    assert journal.read_bytes() == whole + piece  # reading changes nothing
    studies.repair_journal(str(journal))
    assert journal.read_bytes() == whole
    _add(_study(journal), 0.6)
    assert [trial.value for trial in _study(journal).trials] == [0.5, 0.6]


def test_a_journal_is_mended_when_no_other_writes_to_it(journal: Path) -> None:
    _add(_study(journal), 0.5)
    lock = Path(f"{journal}.lock")
    lock.symlink_to(journal)
    mending = threading.Thread(target=studies.repair_journal, args=(str(journal),))
    mending.start()
    journal.write_bytes(journal.read_bytes() + b'{"a line that is')
    mending.join(0.3)
    assert mending.is_alive()
    journal.write_bytes(journal.read_bytes() + b' written": 1}\n')
    lock.unlink()
    mending.join()
    assert journal.read_bytes().endswith(b'{"a line that is written": 1}\n')


def test_a_journal_of_nothing_but_a_piece_is_empty(journal: Path) -> None:
    journal.parent.mkdir()
    journal.write_bytes(b'{"op_co')
    studies.repair_journal(str(journal))
    assert journal.read_bytes() == b""


def test_a_storage_means_the_same_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert studies.resolve_storage("x.journal") == f"{tmp_path}/x.journal"
    assert studies.resolve_storage("sqlite:///x.db") == f"sqlite:///{tmp_path}/x.db"
    for same in ("sqlite:////a/x.db", "postgresql://me@host:5432/optuna"):
        assert studies.resolve_storage(same) == same


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("postgresql://me:secret@host/x", "must hold no password.*PGPASSWORD"),
        ("mysql+pymysql://me@host/x?password=secret", "must hold no password"),
        ("postgresql://me@host:port/x", "must be a file or the URL of a database"),
        ("://", "must be a file or the URL of a database"),
        ("sqlite://", "must outlive the command"),
        ("sqlite:///:memory:", "must outlive the command"),
    ],
)
def test_a_storage_that_cannot_serve_is_refused(where: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        studies.resolve_storage(where)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["nonsense://x", "sqlite:////no/such/folder/x.db"])
def test_a_storage_that_cannot_be_opened_is_one_sentence(url: str) -> None:
    with pytest.raises(StorageError, match=r"^The study's storage .* cannot be opened: .*\.$"):
        studies.open_storage(url)


def test_a_journal_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"journal .* cannot be opened: "):
        studies.open_storage(str(tmp_path / "file" / "study.journal"))


@pytest.mark.slow
def test_a_database_keeps_a_study_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    _add(_study(url), 0.25)
    assert _study(url).best_value == 0.25


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random"])
def test_an_interrupted_search_asks_as_an_uninterrupted_one(
    kind: str, make_study: Callable[[], optuna.Study]
) -> None:
    space = spaces.make_space(Config(), ["loss"])

    def go(study: optuna.Study, until: int) -> None:
        while len(study.trials) < until:
            trial = _ask(study, kind)
            point = space.suggest(trial)
            study.tell(trial, float(point["loss.dice"]))

    whole = make_study()
    go(whole, 14)
    parts = make_study()
    go(parts, 7)
    copied = make_study()
    copied.add_trials(parts.trials)
    go(copied, 14)
    assert [trial.params for trial in copied.trials] == [trial.params for trial in whole.trials]


@pytest.fixture
def make_study() -> Callable[[], optuna.Study]:
    return lambda: optuna.create_study(direction="maximize")


def test_other_seeds_and_numbers_ask_otherwise(make_study: Callable[[], optuna.Study]) -> None:
    space = spaces.make_space(Config(), ["optimiser"])
    study = make_study()
    points = [space.suggest(_ask(study)) for _ in range(4)]
    points.append(space.suggest(_ask(make_study(), seed=1)))
    assert len({point["train.learning_rate"] for point in points}) == 5


def _report_epochs(
    study: optuna.Study, journal: Path, rule: StoppingRule, values: list[float]
) -> list[bool]:
    """Report the epochs of a new trial to an early stopper. Return the answers."""
    trial = study.ask()
    early_stopper = EarlyStopper(str(journal), "s", rule)
    return [
        early_stopper.record(trial.number, epoch + 1, value) for epoch, value in enumerate(values)
    ]


def _finish(study: optuna.Study, journal: Path, values: list[float]) -> None:
    assert all(_report_epochs(study, journal, StoppingRule(), values))
    study.tell(len(study.trials) - 1, values[-1])


def test_the_median_stops_at_declared_epochs_only(journal: Path) -> None:
    study = _study(journal)
    for value in (0.1, 0.2, 0.3, 0.4, 0.5):
        _finish(study, journal, [value] * 4)
    rule = StoppingRule(kind="median", first=2, factor=2)
    assert _report_epochs(study, journal, rule, [0.0, 0.31, 0.31, 0.31]) == [True, True, True, True]
    assert _report_epochs(study, journal, rule, [0.0, 0.29]) == [True, False]
    # The best value counts.
    assert _report_epochs(study, journal, rule, [0.9, 0.9, 0.0, 0.0]) == [True] * 4
    stopped = study.trials[6]
    assert stopped.user_attrs == {studies.STOPPED_ATTRIBUTE: 2}
    assert stopped.intermediate_values == {1: 0.0, 2: 0.29}


def test_the_first_five_trials_are_not_stopped_by_the_median(journal: Path) -> None:
    study = _study(journal)
    for value in (0.5, 0.5, 0.5, 0.5):
        _finish(study, journal, [value] * 2)
    rule = StoppingRule(kind="median", first=1)
    assert _report_epochs(study, journal, rule, [0.0, 0.0]) == [True, True]


def test_halving_lets_the_best_share_go_on(journal: Path) -> None:
    study = _study(journal)
    rule = StoppingRule(kind="halving", first=1, factor=2)
    answers = [
        _report_epochs(study, journal, rule, [value])[0] for value in (0.5, 0.4, 0.6, 0.55, 0.3)
    ]
    # trials that go on: the best of 1, of 2 and of 3; the best two of 4 and of 5
    assert answers == [True, False, True, True, False]


def test_the_early_stopper_gives_the_same_answer_again(journal: Path) -> None:
    study = _study(journal)
    for value in (0.5,) * 5:
        _finish(study, journal, [value])
    rule = StoppingRule(kind="median", first=1)
    number = study.ask().number
    early_stopper = EarlyStopper(str(journal), "s", rule)
    assert not early_stopper.has_stopped(number)
    assert [early_stopper.record(number, 1, 0.1), early_stopper.record(number, 1, 0.9)] == [
        False,
        False,
    ]
    another = EarlyStopper(str(journal), "s", rule)  # as after a crash
    assert not another.record(number, 1, 0.1)
    assert not another.record(number, 2, 0.9)
    assert another.has_stopped(number)


def test_a_trial_that_is_over_is_told_to_end(journal: Path) -> None:
    study = _study(journal)
    _add(study, 0.5)
    assert not EarlyStopper(str(journal), "s", StoppingRule()).record(0, 1, 0.9)


def test_the_best_come_first_and_each_point_once(journal: Path) -> None:
    study = _study(journal)
    for value, dice in ((0.1, 0.3), (0.7, 0.4), (0.5, 0.5), (0.7, 0.6), (0.6, 0.4)):
        _add(study, value, dice=dice)
    _add(study, cause="why not")
    assert [trial.number for trial in studies.select_best(study)] == [1, 3, 2, 0]
    assert [trial.number for trial in studies.select_best(study, 2)] == [1, 3]


def test_with_two_goals_the_front_is_what_nothing_beats(journal: Path) -> None:
    study = _study(journal, 2)
    for number, values in enumerate([(0.1, 0.9), (0.5, 0.5), (0.4, 0.4), (0.9, 0.1), (0.5, 0.3)]):
        _add(study, *values, dice=0.3 + number / 10)
    assert [trial.values for trial in studies.select_best(study)] == [
        [0.9, 0.1],
        [0.5, 0.5],
        [0.1, 0.9],
    ]


def test_without_a_completed_trial_there_is_no_best(journal: Path) -> None:
    study = _study(journal)
    _add(study, cause="It does not fit in memory: 3 GiB")
    with pytest.raises(DataError, match="has no completed trial"):
        studies.select_best(study)
    assert studies.compute_importances(study, ["dice"]) == {}
    (trial,) = studies.list_trials(study)
    assert (trial.state, trial.cause, trial.values) == (
        "failed", "It does not fit in memory: 3 GiB", None,
    )  # fmt: skip
    assert studies.count_trials(study)["failed"] == 1


def test_what_matters_is_found_to_matter(journal: Path) -> None:
    space = spaces.make_space(Config(), ["loss"])
    study = _study(journal)
    for _ in range(40):
        trial = _ask(study, "random")
        study.tell(trial, -abs(float(space.suggest(trial)["loss.dice"]) - 0.5))
    shares = studies.compute_importances(study, ["dice"])["dice"]
    assert max(shares, key=lambda key: shares[key]) == "loss.dice"
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (0, b"["),
        (0, b"[" * 100_000),
        (0, b"{}"),
        (0, b'{"op_code": 99, "worker_id": "w"}'),
        (0, b'{"op_code": 0}'),
        (1, b'{"op_code": 4, "worker_id": "w"}'),
        (1, b"1" * 5000),
        (1, b"\xff\xfe"),
        (1, b'{"op_code": 6, "worker_id": "w", "trial_id": []}'),
    ],
)
def test_a_damaged_journal_is_one_sentence(journal: Path, number: int, line: bytes) -> None:
    _add(_study(journal), 0.5)
    lines = journal.read_bytes().splitlines()
    lines[number] = line
    journal.write_bytes(b"\n".join([*lines, b""]))
    with pytest.raises(StorageError, match="or start a new search") as caught:
        studies.open_storage(str(journal))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"value":0.5,"values":null', b'"value":null,"values":[0.5,0.5]'),
        (b'"value":0.5', b'"value":"x"'),
        (b'"value":0.5', b'"value":NaN'),
        (b'"value":0.5', b'"value":null'),
        (b'"state":1', b'"state":17'),
        (b'"figures":[]', b'"figures":"much"'),
        (b'"seconds":1.5', b'"seconds":"long"'),
        (b'"directions":[2]', b'"directions":[2,2]'),
        (b'"directions":[2]', b'"directions":[9]'),
        (b'"datetime_start":"', b'"datetime_start":"x'),
        (b'"loss.dice":0.5', b'"loss.dice":"x"'),
        (b"FloatDistribution", b"Distribution"),
    ],
)
def test_a_study_that_this_program_has_not_written_is_one_sentence(
    search: Search, old: bytes, new: bytes
) -> None:
    study = optuna.create_study(
        study_name=search.asked.study,
        storage=studies.open_storage(search.storage),
        direction="maximize",
    )
    _add(study, 0.5, figures=[], seconds=1.5)
    assert [trial.values for trial in studies.list_trials(studies.load_study(search))] == [[0.5]]
    path = Path(search.storage)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(StorageError, match="or start a new search") as caught:
        studies.load_study(search)
    assert "\n" not in str(caught.value)
