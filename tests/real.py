"""Location of the real collections, which may be absent."""

import os
from pathlib import Path

REAL = Path(os.environ.get("MTIL_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""`MTIL_DATA`, or shared/data beside the checkout."""
