"""Bucket checks of `python -m cluster check`, on real servers of both kinds."""

import pytest

from cluster import buckets


def test_buckets_that_are_there_are_no_problem(bucket: str, gcs_bucket: str) -> None:
    assert buckets.check_bucket(bucket) == []
    assert buckets.check_bucket(f"{bucket}/some/path") == []
    assert buckets.check_bucket(gcs_bucket) == []
    assert buckets.check_bucket(f"{gcs_bucket}/some/path") == []
    assert list(buckets.find_plain_endpoints()) == []  # both servers are local


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_bucket_that_is_not_there_is_told_in_one_line(
    scheme: str, bucket: str, gcs_bucket: str
) -> None:
    (problem,) = buckets.check_bucket(f"{scheme}://no-such-bucket")
    start = f"The bucket must be reachable from here, but {scheme}://no-such-bucket is not ("
    assert problem.startswith(start)
    assert "\n" not in problem
