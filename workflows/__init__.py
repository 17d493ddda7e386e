"""Deterministic orchestration: one operation, one file, one workflow class."""

from workflows.cluster_maintenance import ClusterMaintenance
from workflows.host_addition import HostAddition
from workflows.host_maintenance import HostMaintenance
from workflows.vm_return import VmReturn

WORKFLOWS = (ClusterMaintenance, HostAddition, HostMaintenance, VmReturn)
