"""JSON and YAML within bounds: accepted documents, and the error sentences of the rest."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from mtil.documents import MAX_DEPTH, MAX_DIGITS, MAX_YAML_BYTES, Document
from mtil.errors import ConfigError, DataError, NotFoundError
from mtil.storage import LocalStore

DOCUMENT = Document("x.json", "write it again", max_bytes=2**21)

PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('ab[]{}"\\', max_size=5), inner),
    max_leaves=20,
)


@given(PLAIN, st.booleans())
def test_what_json_writes_is_read(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert DOCUMENT.json(text) == value
    assert DOCUMENT.json(b"\xef\xbb\xbf" + text) == value  # as written by Windows editors


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "must be JSON, but is not at line 1, column 1"),
        (b'{"a": 1', "must be JSON, but is not at line 1"),
        (b"[1] 2", "must be JSON, but is not at line 1, column 5"),
        (b'{"a": "\0"}', "must be JSON, but is not"),
        ("[1]".encode("utf-16"), "must be UTF-8 text, but byte 0 is not"),
        (b'"\xed\xa0\x80"', "must be UTF-8 text, but byte 1 is not"),
        (b"[" * 200_000, "must nest at most 32 levels deep"),
        (b'{"a":' * 100_000, "must nest at most 32 levels deep"),
        (b"1" * 5000, "must hold integers of at most 40 digits, but has 5000"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "must not repeat a key, but has `c` twice"),
        (b"[NaN]", "must hold finite numbers, but holds NaN"),
        (b"[-Infinity]", "must hold finite numbers, but holds -Infinity"),
        (b"[1e999]", "must hold finite numbers, but holds 1e999"),
        (rb'{"\ud800": 1}', r"must hold text without NUL and surrogates, but holds '\\ud800'"),
        (rb'["x\u0000y"]', r"must hold text without NUL and surrogates, but holds 'x\\x00y'"),
        (b" " * (2**21 + 1), "must have at most 2097152 bytes, but has 2097153"),
    ],
)
def test_what_is_no_bounded_json_is_one_sentence(data: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=rf"^x\.json {problem}.*; write it again\.$") as caught:
        DOCUMENT.json(data)
    assert len(str(caught.value)) < 200


def test_brackets_in_texts_do_not_nest() -> None:
    text = "[{" * 1000 + '"' + "\\"
    assert DOCUMENT.json(json.dumps([text]).encode()) == [text]
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert DOCUMENT.json(deepest.encode()) == json.loads(deepest)
    with pytest.raises(DataError, match="levels deep"):
        DOCUMENT.json(b"[" + deepest.encode() + b"]")


def test_an_escaped_letter_outside_the_first_plane_is_a_letter() -> None:
    assert DOCUMENT.json(rb'"\ud83e\ude7b"') == "\U0001fa7b"


def test_infinite_numbers_are_read_where_they_may_be() -> None:
    lenient = Document("x", "delete it", finite=False)
    value = lenient.json(b"[NaN, Infinity, -1e999]")
    assert math.isnan(value[0])
    assert value[1:] == [math.inf, -math.inf]


def test_lines_are_objects_and_named_by_their_number() -> None:
    assert DOCUMENT.lines(b'{"a": 1}\n{"a": 2}\n') == [{"a": 1}, {"a": 2}]
    with pytest.raises(DataError, match=r"^Line 2 of x\.json must be a JSON object, but is 3; "):
        DOCUMENT.lines(b'{"a": 1}\n3\n')


def test_no_more_than_the_bound_is_read(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.write("x", b"12345")
    assert Document("x", "write it again", max_bytes=5).read(store, "x") == b"12345"
    with pytest.raises(DataError, match="x must have at most 4 bytes, but has more; write it"):
        Document("x", "write it again", max_bytes=4).read(store, "x")
    with pytest.raises(NotFoundError):
        DOCUMENT.read(store, "y")


@dataclass(frozen=True)
class Counted:
    count: int
    name: str = ""


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "is wrong at `count`: it is missing"),
        ({"count": True}, "is wrong at `count`: should be a valid integer, but got True"),
        ({"count": "1"}, "is wrong at `count`: should be a valid integer, but got '1'"),
        ({"count": 1.5}, "is wrong at `count`: should be a valid integer, but got 1.5"),
        ({"count": [1]}, "is wrong at `count`: should be a valid integer, but got an array"),
        ({"count": "a" * 999}, "is wrong at `count`: should be a valid integer, but got 'a{60}…'"),
        ({"count": 1, "name": 2}, "is wrong at `name`: should be a valid string, but got 2"),
    ],
)
def test_a_wrong_type_is_named_by_its_key(values: dict[str, object], problem: str) -> None:
    with pytest.raises(DataError, match=rf"^x\.json {problem}; write it again\.$"):
        DOCUMENT.validate(TypeAdapter(Counted), values)
    assert DOCUMENT.validate(TypeAdapter(Counted), {"count": 3}) == Counted(3)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-.5", -0.5),
        ("+.5e1", 5.0),
        ("1.5", 1.5),
        ("12", 12),
        ("yes", True),
        ("null", None),
        ("2020-01-01", "2020-01-01"),
        ("[32, 16]", [32, 16]),
        ("{a: {b: x}}", {"a": {"b": "x"}}),
        ("\ufeffa: 1", {"a": 1}),
        ("", None),
    ],
)
def test_yaml_is_read_as_plain_values(text: str, value: object) -> None:
    found = DOCUMENT.yaml(text)
    assert found == value
    assert type(found) is type(value)
    assert DOCUMENT.yaml(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: &x [1]\nb: [*x, *x]", "must have no YAML aliases; write the values out"),
        ("[" * 60_000, "must nest at most 32 levels deep"),
        ("{a: " * 40, "must nest at most 32 levels deep"),
        ("a: 1\nb: 2\na: 3", "must not repeat a key, but has `a` twice"),
        ("a: .nan", "must hold finite numbers, but holds .nan"),
        ("a: 1e999", "must hold finite numbers, but holds 1e999"),
        ("a: " + "1" * 5000, "must be YAML, but holds a value that cannot be read"),
        ("a: 0x" + "f" * 5000, f"must hold integers of at most {MAX_DIGITS} digits"),
        ("? [a]\n: 1", "must have texts as keys, but has an array"),
        ("1: 2", "must have texts as keys, but has 1"),
        ('a: "\\ud800"', "must hold text without NUL and surrogates"),
        ('a: "\\0"', "must hold text without NUL and surrogates"),
        ('a: "\\U00110000"', "must be YAML, but holds a value that cannot be read"),
        ("a: !!python/object/apply:os.getcwd []", "must be YAML, but is not"),
        ("a: !!binary aGk=", "must be YAML, but is not"),
        ("a: !!int x", "must be YAML, but holds a value that cannot be read"),
        ("- 1\nb", "must be YAML, but is not"),
        ("--- 1\n--- 2", "must be YAML, but is not"),
        ("a: \x01", "must be YAML, but is not"),
        ("#" + "x" * MAX_YAML_BYTES, "must have at most 65536 bytes, but has 65537"),
    ],
)
def test_what_is_no_bounded_yaml_is_one_sentence(text: str, problem: str) -> None:
    document = Document("c.yaml", "correct the file", ConfigError)
    with pytest.raises(ConfigError, match=rf"^c\.yaml {problem}.*; correct the file\.$") as caught:
        document.yaml(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
