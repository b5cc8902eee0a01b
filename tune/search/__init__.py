"""The search on Ray: the driver and the trials."""

from tune.search.driver import StudySearch, check_figures, run
from tune.search.room import room

__all__ = ["StudySearch", "check_figures", "room", "run"]
