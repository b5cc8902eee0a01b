"""Mapping a function over items in threads."""

from collections.abc import Iterator

import pytest

from mtil.data.parallel import map_in_threads


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(map_in_threads(lambda item: item * item, range(100))) == [n * n for n in range(100)]


def test_only_a_few_items_are_taken_ahead_of_the_results() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    results = iter(map_in_threads(lambda item: item, items()))
    assert [next(results) for _ in range(10)] == list(range(10))
    assert 10 <= len(taken) <= 20  # at most eight threads, and an extra item


def test_an_error_is_raised_where_its_result_would_come() -> None:
    def inverse(item: int) -> float:
        return 1 / item

    results = map_in_threads(inverse, [2, 4, 0, 8])
    assert [next(results), next(results)] == [0.5, 0.25]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []
