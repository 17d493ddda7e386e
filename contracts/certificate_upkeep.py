"""What is done for certificates by itself: revocation lists brought to hosts."""

from datetime import datetime

from pydantic import Field

from contracts.base import Contract, Name
from contracts.leases import Owner


class HostCrls(Contract):
    """Which revocation lists a host that has certificates goes by.

    Attributes:
        lists: their numbers, by authority ("root/1").
        current: they are the newest ones.
        delivered_at: when it got them; None: it never did.
        tried_at: of the last attempt since, in vain, and why (`problem`).
    """

    host: str
    lists: dict[str, int]
    current: bool
    delivered_at: datetime | None = None
    tried_at: datetime | None = None
    problem: str = ""


class HostsWithoutCrls(Contract):
    """Hosts that are to get the newest lists now, and those for which it is not the time, with
    why."""

    hosts: tuple[Name, ...]
    not_now: dict[Name, str] = Field(default_factory=dict)


class DeliverCrlsInput(Contract):
    """Bring them the newest lists; `owner`: the operation that does."""

    hosts: tuple[Name, ...]
    owner: Owner


class CrlDelivery(Contract):
    """Who has got the newest lists, and who has not yet, with why. Whoever is no host any more is
    in neither."""

    delivered: tuple[Name, ...] = ()
    missing: dict[Name, str] = Field(default_factory=dict)
