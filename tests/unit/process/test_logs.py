"""Log lines are valid JSON and carry the fields of the run."""

import json
import logging
from collections.abc import Iterator

import pytest

from mtil.process import logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Restore the logger after the test."""
    logger = logging.getLogger("mtil")
    before = (logger.handlers, logger.level, logger.propagate)
    yield
    logger.handlers, level, logger.propagate = before
    logger.setLevel(level)


def test_a_line_says_what_it_is_of(capsys: pytest.CaptureFixture[str]) -> None:
    logs.log_json_to_stderr(run="s3://bucket/run", round=1, fold=0, part=None, rank=2)
    logger = logging.getLogger("mtil.distributed.training.worker")
    logger.info("epoch done", extra={"fields": {"epoch": 3, "loss": 0.25}})
    logger.debug("nobody reads this")
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "level": "INFO", "message": "epoch done", "run": "s3://bucket/run", "round": 1, "fold": 0,
        "part": None, "rank": 2, "epoch": 3, "loss": 0.25,
    }  # fmt: skip


def test_lines_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Line breaks in messages and errors do not split a log line."""
    logs.log_json_to_stderr(run="a\nb")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("mtil").exception("%s", "what\nhappened")
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert record["message"] == "what\nhappened"
    assert record["exception"].endswith("ValueError: two\nlines")


def test_numbers_that_json_has_not_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    logs.log_json_to_stderr(run="r")
    fields = {
        "auc": float("nan"),
        "loss": {"seg": float("inf"), "cls": 0.5},
        "all": [-float("inf")],
    }
    logging.getLogger("mtil").info("epoch done", extra={"fields": fields})
    (line,) = capsys.readouterr().err.splitlines()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    record = json.loads(line, parse_constant=refuse)
    values = [record["auc"], record["loss"], record["all"]]
    assert values == [None, {"seg": None, "cls": 0.5}, [None]]


def test_a_second_training_in_a_process_replaces_the_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.log_json_to_stderr(fold=0)
    logs.log_json_to_stderr(fold=1)
    logging.getLogger("mtil").warning("here")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["fold"] == 1
