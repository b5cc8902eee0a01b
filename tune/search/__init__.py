"""The search on Ray: the driver and the trials."""

from tune.search.concurrency import plan_concurrency
from tune.search.driver import StudySearch, check_objective_figures, run_search

__all__ = ["StudySearch", "check_objective_figures", "plan_concurrency", "run_search"]
