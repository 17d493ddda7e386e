"""Every workflow that a worker serves."""

from workflows.allocation_state import AllocationState
from workflows.authority_rollover import AuthorityRollover
from workflows.authority_setup import AuthoritySetup
from workflows.authority_upkeep import AuthorityUpkeep
from workflows.bmc_password_change import BmcPasswordChange
from workflows.bmc_test import BmcTest
from workflows.certificate_provisioning import CertificateProvisioning
from workflows.certificate_renewal import CertificateRenewal
from workflows.certificate_revocation import CertificateRevocation
from workflows.certificate_signing import CertificateSigning
from workflows.cluster_certificates import ClusterCertificates
from workflows.cluster_maintenance import ClusterMaintenance
from workflows.host_addition import HostAddition
from workflows.host_check import HostCheck
from workflows.host_import import HostImport
from workflows.host_maintenance import HostMaintenance
from workflows.host_reinstallation import HostReinstallation
from workflows.host_removal import HostRemoval
from workflows.housekeeping import Housekeeping
from workflows.password_rotation import PasswordRotation
from workflows.password_verification import PasswordVerification
from workflows.power_action import PowerAction
from workflows.power_probe import PowerProbe
from workflows.power_sync import PowerSync
from workflows.tls_check import TlsCheck
from workflows.vm_return import VmReturn

WORKFLOWS = (
    AllocationState,
    AuthorityRollover,
    AuthoritySetup,
    AuthorityUpkeep,
    BmcPasswordChange,
    BmcTest,
    CertificateProvisioning,
    CertificateRenewal,
    CertificateRevocation,
    CertificateSigning,
    ClusterCertificates,
    ClusterMaintenance,
    HostAddition,
    HostCheck,
    HostImport,
    HostMaintenance,
    HostReinstallation,
    HostRemoval,
    Housekeeping,
    PasswordRotation,
    PasswordVerification,
    PowerAction,
    PowerProbe,
    PowerSync,
    TlsCheck,
    VmReturn,
)
