"""The search attributes that every operation sets."""

from temporalio.common import SearchAttributeKey

HOST_NAME = SearchAttributeKey.for_keyword("HostlerHost")
HOST_CLUSTER = SearchAttributeKey.for_keyword("HostlerCluster")
HOST_POD = SearchAttributeKey.for_keyword("HostlerPod")
HOST_ZONE = SearchAttributeKey.for_keyword("HostlerZone")
PHASE = SearchAttributeKey.for_keyword("HostlerPhase")

SEARCH_ATTRIBUTES = (HOST_NAME, HOST_CLUSTER, HOST_POD, HOST_ZONE, PHASE)
