"""Log lines for machines: JSON objects that say which run, round, fold and process they are of."""

import json
import logging
import math
import sys
from datetime import UTC, datetime
from typing import Any


class JsonLines(logging.Formatter):
    """One JSON object a record: time, level, message, the given fields, and those of the record.

    A record has fields of its own by `logger.info(…, extra={"fields": {…}})`.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": record.getMessage(),
            **self._fields,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(finite(line), default=str)


def finite(value: Any) -> Any:
    """Put None, which is null, where JSON has no number: for what is infinite or none at all."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value


def to_stderr(**fields: Any) -> None:
    """Have this process's records of `mtil`, from INFO on, go to stderr as JSON with these fields.

    Ray keeps a file of each process's stderr, on the node that it runs on.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(**fields))
    logger = logging.getLogger("mtil")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
