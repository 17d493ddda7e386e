"""Leases: which operation may change a host, and the epoch that fences off its predecessors."""

from enum import StrEnum

from contracts.base import Contract, Name


class LeaseScope(StrEnum):
    """What of a host an operation holds."""

    PLACEMENT = "placement"
    """Where VMs may run: maintenance, addition, removal, re-installation."""
    POWER = "power"
    """What its BMC is told: power, and the BMC's own password."""
    TRUST = "trust"
    """Who is let in, and by what: the passwords of its accounts, the certificates that it shows and
    accepts. A rotation of passwords and a provisioning of certificates hold it, and so exclude each
    other on a host. A removal and a re-installation hold it beside PLACEMENT, from before they
    withdraw anything to their end."""
    LIBVIRTD = "libvirtd"
    """Its libvirtd is restarted, which would break off migrations: none begins from or to it. It is
    taken for the restart alone, beside TRUST. Migrations share it by their reservations: while one
    of these says that a VM is on its way, there is no restart."""


class Owner(Contract):
    """The operation that holds a lease.

    `first_run_id` is the first execution's run id of the workflow's chain: it stays the same when
    the workflow continues as new, so the lease outlives that.
    """

    workflow_id: str
    first_run_id: str


class LeaseRef(Contract):
    """What a mutating activity carries: it is checked right before each side effect."""

    host: Name
    scope: LeaseScope = LeaseScope.PLACEMENT
    owner: Owner
    epoch: int

    @property
    def closing_epoch(self) -> int:
        """Between this lease's epoch and any successor's. A host that holds it refuses what a
        stopped worker of this operation may still do when it goes on, and no successor."""
        return self.epoch + 1


class Lease(Contract):
    """A lease held. `epoch` rises by 2 at each change of owner of (host, scope), and never falls:
    the odd number above it is `LeaseRef.closing_epoch`."""

    host: Name
    scope: LeaseScope
    owner: Owner
    epoch: int
    purpose: str
    taken_over_from: Owner | None = None

    @property
    def ref(self) -> LeaseRef:
        """What its activities carry."""
        return LeaseRef(host=self.host, scope=self.scope, owner=self.owner, epoch=self.epoch)
