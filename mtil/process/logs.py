"""Log lines as JSON objects with run, round, fold and process."""

import json
import logging
import math
import sys
from datetime import UTC, datetime
from typing import Any


class JsonLines(logging.Formatter):
    """Formats each record as a JSON object: time, level, message and fields.

    The fields are the formatter's and the record's. Give a record fields with
    `logger.info(…, extra={"fields": {…}})`.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": record.getMessage(),
            **self._fields,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(replace_non_finite(line), default=str)


def replace_non_finite(value: Any) -> Any:
    """Replace infinite and NaN floats by None, also inside lists and dictionaries."""
    # JSON has no infinity and no NaN, so None becomes null.
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(item) for item in value]
    return value


def log_json_to_stderr(**fields: Any) -> None:
    """Write mtil's log records of level INFO and above to stderr as JSON lines.

    Replaces the handlers of an earlier call. Ray keeps a process's stderr in a file on the node.

    Args:
        fields: fields for every record.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(**fields))
    logger = logging.getLogger("mtil")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
