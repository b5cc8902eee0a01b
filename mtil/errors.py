"""Errors that mtil raises on purpose.

MtilError
├── UserError            the user's input is wrong: one sentence, exit code 2
│   ├── ConfigError      a configuration key or value
│   ├── DataError        an image, a mask, a table, a data set
│   ├── StorageError     a path or bucket that cannot be read or written
│   │   ├── NotFoundError
│   │   ├── TooLargeError  an object of more bytes than its reader takes
│   │   └── RefusedError  one that answers, and lets nobody in
│   ├── LedgerError      a circle's ledger that was damaged
│   ├── CheckpointError  a model file that does not fit
│   │   └── OtherModelError  one that is not what its result names
│   └── ResourceError    a plan that the cluster cannot run
└── RunError             a run that failed on the way: exit code 1
    ├── LostError        a process or a machine that died under it
    └── MapError         a map shard that must be written again

A message is one sentence for the user: the rule, the value, the way out. Every error has that
message as its only argument, so that it survives pickling between Ray processes.
"""


class MtilError(Exception):
    """Base of all errors that mtil raises on purpose."""


class UserError(MtilError, ValueError):
    """The user's input is wrong; the message says what to do about it."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class DataError(UserError):
    """An image, a mask, a table or a data set is wrong."""


class StorageError(UserError):
    """A path or bucket cannot be read or written."""


class NotFoundError(StorageError):
    """A path or object does not exist."""


class TooLargeError(StorageError):
    """An object has more bytes than its reader takes into memory."""


class RefusedError(StorageError):
    """A storage answers, but not to these credentials or this clock."""


class LedgerError(UserError):
    """A circle's ledger is damaged, or of another version."""


class CheckpointError(UserError):
    """A model file does not fit what it is used for."""


class OtherModelError(CheckpointError):
    """A model file is missing, or is not the one that the result beside it names."""


class ResourceError(UserError):
    """The cluster cannot run the plan."""


class RunError(MtilError, RuntimeError):
    """A run failed on the way."""


class LostError(RunError):
    """A process or a machine died; the same again may well succeed."""


class MapError(RunError):
    """A map shard is missing, damaged or another's; its message begins `Map shard PATH of`."""

    @property
    def path(self) -> str:
        """The map shard, which the message names since Ray may pass on nothing else."""
        return str(self).removeprefix("Map shard ").partition(" of ")[0]
