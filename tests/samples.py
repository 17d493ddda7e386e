"""A host and its facts, in the shape of contracts/, for tests that need just any."""

from datetime import UTC, datetime

from contracts.hosts import Host, HostFacts
from contracts.states import HostStatus, ResourceState

WHEN = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
FINGERPRINT = "SHA256:" + "A" * 43
FACTS = HostFacts(
    uuid="5ab1f0c4-0000-4000-8000-000000000001",
    architecture="x86_64",
    cpu_model="EPYC",
    cpus=2,
    memory_mib=512,
    libvirt_version="9.0.0",
    qemu_version="7.2.19",
    operating_system="Debian GNU/Linux 12",
)


def host(name: str = "kvm-1", state: ResourceState = ResourceState.ENABLED, **more: object) -> Host:
    """An `Up` host of cluster-1; `more` are its other fields."""
    return Host(
        name=name,
        zone="zone-1",
        pod="pod-1",
        cluster="cluster-1",
        address="198.18.0.11",
        user="root",
        host_key_sha256=FINGERPRINT,
        resource_state=state,
        state_before_maintenance=None,
        status=HostStatus.UP,
        fence=None,
        fence_generation=1,
        facts=FACTS,
        capacity_memory_mib=None,
        capacity_cpus=None,
        reserved_memory_mib=0,
        created_at=WHEN,
        updated_at=WHEN,
    ).model_copy(update=more)
