"""Errors of `python -m cluster`. A message is one sentence: the rule, the value, the way out."""


class ClusterError(Exception):
    """Something outside failed: exit code 1."""


class UsageError(ClusterError):
    """What the user gave is wrong; the message says what to do about it: exit code 2."""
