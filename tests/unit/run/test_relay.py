"""Unreadable progress, failing listeners and failing gauges never end a training."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from mtil.distributed.runtime import gauges
from mtil.distributed.runtime.gauges import Gauges, encode_tag
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.run.relay import GuardedListener, ProgressRelay

CircleRun = Callable[..., Run]


def test_a_listener_whose_reader_has_left_is_told_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[int] = []

    def listen(line: dict[str, Any]) -> None:
        heard.append(line["number"])
        if line["number"] == 2:
            raise BrokenPipeError(32, "Broken pipe")

    guarded = GuardedListener(listen)
    for number in range(5):
        guarded({"number": number})
    assert heard == [0, 1, 2]
    assert caplog.messages == [
        "Progress is no longer shown: BrokenPipeError: [Errno 32] Broken pipe"
    ]


def test_ctrl_c_while_a_line_is_shown_is_ctrl_c() -> None:
    def listen(line: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GuardedListener(listen)({})


@pytest.mark.parametrize(
    "damaged", [b"not JSON", b"[]", b'{"epoch": "x"}', b"{}", b"\xff", b"null", b"[" * 100_000]
)
def test_a_damaged_step_says_nothing(circle_run: CircleRun, damaged: bytes) -> None:
    run, of = circle_run(until=Train(0, 0)), Train(0, 0)
    lines: list[dict[str, Any]] = []
    relay = ProgressRelay(run, of, lines.append)
    run.store.write("rounds/0/fold-0/step.json", damaged)
    relay.send_news()
    assert run.step(of) is None
    run.write_step(of, {"epoch": 1, "step": 2, "steps": 3, "hosts": ["node"]})
    relay.send_news()
    assert lines == [
        {"kind": "step", "fold": of.fold, "epoch": 1, "step": 2, "steps": 3, "hosts": ["node"]}
    ]


def test_a_damaged_history_is_logged_once_and_read_again(
    circle_run: CircleRun, caplog: pytest.LogCaptureFixture
) -> None:
    run, of = circle_run(until=Train(0, 0)), Train(0, 0)
    lines: list[dict[str, Any]] = []
    run.store.write("rounds/0/fold-0/history.jsonl", b"not JSON")
    relay = ProgressRelay(run, of, lines.append)
    relay.send_news()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        "Cannot read the progress of the training of round 0, fold 0: "
    )
    run.write_history(of, [{"epoch": 0}])
    relay.send_news()
    run.write_history(of, [{"epoch": 0}, {"epoch": 1}])
    relay.send_news()
    assert lines == [{"kind": "epoch", "epoch": 1}]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/run-1", "s3://bucket/run-1"),
        ("läufe/乳腺", "l\\xe4ufe/\\u4e73\\u817a"),
        ("a\nb\x7f", "a\\x0ab\\x7f"),
        ("\udcff 100% #'\"", "\\udcff 100% #'\""),
    ],
)
def test_the_value_of_a_tag_is_printable_ascii(text: str, expected: str) -> None:
    assert encode_tag(text) == expected


def test_a_gauge_that_fails_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.tags: dict[str, str] = {}

        def set_default_tags(self, tags: dict[str, str]) -> "Refusing":
            self.tags = tags
            return self

        def set(self, value: float) -> None:
            raise UnicodeEncodeError("ascii", "ä", 0, 1, "ordinal not in range(128)")

    monkeypatch.setattr(gauges, "Gauge", Refusing)
    made = Gauges({"mtil_loss": "The loss."}, run="läufe")
    with caplog.at_level(logging.ERROR):
        made.set(loss=1.0)
        made.set(loss=0.5)
    assert caplog.messages == ["The gauges of the process have failed and are disabled"]
