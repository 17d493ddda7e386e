"""Deterministic orchestration: one operation, one file, one workflow class."""

from workflows.host_addition import HostAddition
from workflows.host_maintenance import HostMaintenance

WORKFLOWS = (HostAddition, HostMaintenance)
