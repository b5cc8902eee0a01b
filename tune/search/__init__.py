"""The search on Ray: its driver, and what a trial does. Nothing else in `tune` knows Ray."""

from tune.search.driver import StudySearch, check_figures, run
from tune.search.room import room

__all__ = ["StudySearch", "check_figures", "room", "run"]
