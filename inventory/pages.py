"""Parts of a list that is sorted by name."""

from typing import Any, TypeVar

from sqlalchemy import Select
from sqlmodel import col

Q = TypeVar("Q", bound=Select[*tuple[Any, ...]])


def page(query: Q, name: str, *, limit: int | None, after: str | None) -> Q:
    """`query` by the column `name`: at most `limit` rows, of names that come after `after`.

    A name in the place of a number of rows: what is added or deleted meanwhile moves no row to
    another page.
    """
    if after is not None:
        query = query.where(col(name) > after)
    return query.order_by(col(name)).limit(limit)
