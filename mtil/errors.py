"""Exceptions of mtil.

MtilError
├── UserError            wrong user input; exit code 2
│   ├── ConfigError      wrong configuration key or value
│   ├── DataError        wrong image, mask, table or data set
│   ├── StorageError     unreadable or unwritable path or bucket
│   │   ├── NotFoundError  missing path or object
│   │   ├── TooLargeError  object above the reader's size limit
│   │   └── RefusedError   storage that rejects the credentials or the clock
│   ├── LedgerError      damaged ledger of a circle, or ledger of another version
│   ├── CheckpointError  unsuitable model file
│   │   └── OtherModelError  model file missing or different from the result's
│   └── ResourceError    plan too large for the cluster
└── RunError             failure during a run; exit code 1
    ├── LostError        death of a process or machine
    ├── OutOfMemoryError  too little memory for the network and its images
    └── MapError         map shard to be written again

A message is one or two short sentences: the rule, the value found, the remedy. The message is the
error's only argument, because pickling between Ray processes keeps `args` alone.
"""


class MtilError(Exception):
    """Base class of all deliberate errors of mtil."""


class UserError(MtilError, ValueError):
    """The user's input is wrong. The message names a remedy."""


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class DataError(UserError):
    """An image, a mask, a table or a data set is wrong."""


class StorageError(UserError):
    """A path or bucket cannot be read or written."""


class NotFoundError(StorageError):
    """A path or object does not exist."""


class TooLargeError(StorageError):
    """An object has more bytes than the reader's limit."""


class RefusedError(StorageError):
    """A storage answers, but rejects the credentials or this machine's clock."""


class LedgerError(UserError):
    """A circle's ledger is damaged or has another version."""


class CheckpointError(UserError):
    """A model file does not suit its use."""


class OtherModelError(CheckpointError):
    """A model file is missing or differs from the file named in the training's result."""


class ResourceError(UserError):
    """The cluster has too few resources for the plan."""


class RunError(MtilError, RuntimeError):
    """A run failed."""


class LostError(RunError):
    """A process or a machine died. A retry may succeed."""


class OutOfMemoryError(RunError):
    """A machine or a GPU has too little memory for the network and its images."""


class MapError(RunError):
    """A map shard is missing, damaged or foreign. The message begins with `Map shard PATH of`."""

    @property
    def path(self) -> str:
        """Path of the map shard."""
        # The path is parsed from the message, because Ray may pass on nothing but the message.
        return str(self).removeprefix("Map shard ").partition(" of ")[0]
