"""Parsing of commands in cluster files: Ray starts and settings."""

import pytest

from cluster.commands import find_ray_starts, split_statements


def test_statements_are_words_without_quotes_and_comments() -> None:
    text = "a 'b c' # d; e\nif f; then g=\"h\"; fi && i \\\n  j # 'k"
    assert list(split_statements(text)) == [
        ["a", "b c"], ["if", "f"], ["then", "g=h"], ["fi"], ["i", "j"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "mode"),
    [
        ("export A=1 RAY_AUTH_MODE=token; ulimit -n $(ulimit -Hn); ray start --head", "token"),
        ("RAY_AUTH_MODE='token' ~/venv/bin/ray start --head", "token"),
        ("RAY_AUTH_MODE=token; ray start", "token"),
        ("export RAY_AUTH_MODE=token; RAY_AUTH_MODE=disabled ray start", "disabled"),
        ("RAY_AUTH_MODE=token true; ray start", None),
        ("export RAY_AUTH_MODE=token; unset RAY_AUTH_MODE; ray start", None),
        ("# RAY_AUTH_MODE=token\nray start", None),
    ],
)
def test_the_last_setting_before_a_start_counts(command: str, mode: str | None) -> None:
    (start,) = find_ray_starts(command)
    assert start.variables.get("RAY_AUTH_MODE") == mode


def test_options_may_be_written_both_ways_and_the_last_counts() -> None:
    (start,) = find_ray_starts(
        "ray start --head --port 1 --dashboard-host='0.0.0.0' --port=2 --block"
    )
    assert start.options == {
        "--head": "", "--port": "2", "--dashboard-host": "0.0.0.0", "--block": "",
    }  # fmt: skip


def test_what_a_command_prints_is_one_word() -> None:
    (start,) = find_ray_starts("ulimit -n $(ulimit -Hn); ray start --host=$(a $(b; c)) --port=1")
    assert start.options == {"--host": "$OUTPUT", "--port": "1"}


def test_a_script_has_several_and_what_is_given_is_set() -> None:
    script = "until ray start --address=$head:6379 --block; do sleep 2; done\nray start --head &"
    worker, head = find_ray_starts(script, {"X": "1"})
    assert worker.options == {"--address": "$head:6379", "--block": ""}
    assert head.options == {"--head": ""}
    assert head.variables == {"X": "1"}
    assert list(find_ray_starts("ray stop; echo 'ray start'")) == []
