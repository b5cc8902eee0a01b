"""Errors of `python -m cluster`. A message states the rule, the value found and the remedy."""


class ClusterError(Exception):
    """An external failure, such as a cloud or a cluster out of reach: exit code 1."""


class UsageError(ClusterError):
    """Wrong user input: exit code 2."""
