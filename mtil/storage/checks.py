"""Whether a place can hold what mtil keeps: everything is tried that preparations and runs use."""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import perf_counter
from typing import TypeVar

from mtil.errors import StorageError
from mtil.storage.local import LocalStore

T = TypeVar("T")
