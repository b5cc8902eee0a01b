"""Create searches in tests."""

from tune.record import Search, SearchRequest


def create_search(uri: str, request: SearchRequest) -> Search:
    """Create a search or open the existing search, as `mtil-tune run` does."""
    search = Search.plan(uri, request)
    search.keep()
    return search
