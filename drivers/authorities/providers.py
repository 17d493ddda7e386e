"""Finds providers of certificates by their entry points."""

from functools import cache
from importlib.metadata import entry_points

from contracts.errors import Conflict
from drivers.authorities.protocols import ENTRY_POINTS, ProviderFactory


@cache
def provider(name: str) -> ProviderFactory:
    """What makes the provider of that name. Raises Conflict if none is installed, or if its code
    can't be loaded: it is looked for again then. One that was found stays, as its code does."""
    found = entry_points(group=ENTRY_POINTS)
    chosen = [point for point in found if point.name == name]
    if not chosen:
        raise Conflict(
            f"There is no CA provider {name!r}; installed are {', '.join(sorted(found.names))}.",
            remedy="Set ca.framework.provider.plugin to one of these, or install its package for "
            "every worker.",
        )
    try:
        factory: ProviderFactory = chosen[0].load()
    except (ImportError, AttributeError) as error:
        raise Conflict(f"The CA provider {name!r} can't be loaded: {error}.") from error
    return factory
