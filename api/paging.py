"""Lists that are given page by page."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from api.requests import Page, PageQuery
from contracts.hosts import Cluster, Host, Pod, Zone

N = TypeVar("N", Zone, Pod, Cluster, Host)


async def page_of(read: Callable[..., Awaitable[list[N]]], query: PageQuery) -> Page[N]:
    """What `read`, which sorts by name, has for `query`. One more than asked for tells whether any
    is left."""
    found = await read(**{**dict(query), "limit": query.limit + 1})
    items = found[: query.limit]
    return Page(items=items, next=items[-1].name if len(found) > len(items) else None)
