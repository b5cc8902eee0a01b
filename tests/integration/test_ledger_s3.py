"""The ledger on a real S3 server: a single writer wins among concurrent writers."""

import threading
from pathlib import Path

from mtil.circle.ledger import AppendConflict, Ledger, check_conditional_writes
from mtil.circle.state import ActionDone, ActionStarted, SessionBooted
from mtil.config import CircleConfig
from mtil.run.plan import CirclePlan, Train
from mtil.storage import open_store


def test_of_eight_writers_at_once_one_wins_and_the_others_follow(
    bucket: str, tmp_path: Path
) -> None:
    store = open_store(f"{bucket}/{tmp_path.name}")
    check_conditional_writes(store)
    assert store.names() == []
    Ledger.open(store).begin(CirclePlan.of(CircleConfig(), [0]), "f" * 64, "c" * 64)
    writers = [Ledger.open(store, session=f"w{number}") for number in range(8)]
    barrier = threading.Barrier(8)
    won: list[Ledger] = []
    overtaken: list[Ledger] = []

    def write(ledger: Ledger) -> None:
        barrier.wait()
        try:
            ledger.append(SessionBooted())
            won.append(ledger)
        except AppendConflict:
            overtaken.append(ledger)

    threads = [threading.Thread(target=write, args=(ledger,)) for ledger in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(overtaken)) == (1, 7)
    assert store.names() == ["ledger/000001.json", "ledger/000002.json"]
    (winner,) = won
    winner.append(ActionStarted(action=Train(0, 0), attempt=1))
    winner.append(ActionDone(action=Train(0, 0), attempt=1, result={"dice": 0.5}))
    for ledger in overtaken:
        assert ledger.refresh() == winner.state
    assert Ledger.open(store).state == winner.state
