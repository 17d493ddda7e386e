"""What an ordinary run tries of many possibilities: another choice each day."""

import os
from datetime import UTC, datetime


def seed_of_the_day() -> str:
    """MATRIX_SEED, or the day, in UTC."""
    return os.environ.get("MATRIX_SEED") or f"{datetime.now(UTC):%Y%m%d}"
