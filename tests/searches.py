"""Searches that tests make."""

from tune.record import Search, SearchRequest


def create_search(uri: str, request: SearchRequest) -> Search:
    """Make a search, or open the one that is there, as `mtil-tune run` does."""
    search = Search.plan(uri, request)
    search.keep()
    return search
