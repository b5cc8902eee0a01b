"""Whether a place can hold what mtil keeps: everything is tried that preparations and runs use."""

from typing import TypeVar

T = TypeVar("T")
