"""What Hostler knows: hosts and their states, leases, reservations, secrets, the audit trail."""

from inventory.accepted_operations import AcceptedOperations
from inventory.authorities import Authorities
from inventory.certificate_upkeep import CertificateUpkeep
from inventory.certificates import Certificates
from inventory.closings import Closings
from inventory.cluster_passwords import ClusterPasswords
from inventory.database import Database
from inventory.events import Events
from inventory.expiring_certificates import ExpiringCertificates
from inventory.hook_runs import HookRuns
from inventory.host_checks import HostChecks
from inventory.hosts import Hosts
from inventory.leases import Leases
from inventory.maintenances import Maintenances
from inventory.master_keys import MasterKeys
from inventory.oobm import OobmConfigurations
from inventory.own_keys import OwnKeys
from inventory.password_checks import PasswordChecks
from inventory.placement import Placement
from inventory.power import Power
from inventory.reinstallations import Reinstallations
from inventory.removed_hosts import RemovedHosts
from inventory.reservations import Reservations
from inventory.rollovers import Rollovers
from inventory.secret_box import SecretBox
from inventory.secrets import Secrets
from inventory.settings import OperatorSettings
from inventory.stored_secrets import StoredSecrets
from inventory.tokens import Tokens
from inventory.topology import Topology
from inventory.trust import Trust
from inventory.vm_migrations import VmMigrations

__all__ = ["Database", "Inventory", "SecretBox"]


class Inventory:
    """All of it, on one database. Every method may raise Unavailable: the database is locked, or
    away."""

    def __init__(self, database: Database, box: SecretBox) -> None:
        self.database = database
        self.topology = Topology(database)
        self.settings = OperatorSettings(database)
        self.hosts = Hosts(database)
        self.closings = Closings(database)
        self.host_checks = HostChecks(database)
        self.removed_hosts = RemovedHosts(database)
        self.reinstallations = Reinstallations(database)
        self.placement = Placement(database)
        self.leases = Leases(database)
        self.reservations = Reservations(database)
        self.maintenances = Maintenances(database)
        self.vm_migrations = VmMigrations(database)
        self.hook_runs = HookRuns(database)
        self.secrets = Secrets(database, box)
        self.stored_secrets = StoredSecrets(database)
        self.master_keys = MasterKeys(database, box)
        self.cluster_passwords = ClusterPasswords(database, box)
        self.accepted = AcceptedOperations(database, box)
        self.password_checks = PasswordChecks(database)
        self.own_keys = OwnKeys(database)
        self.oobm = OobmConfigurations(database)
        self.power = Power(database)
        self.tokens = Tokens(database)
        self.authorities = Authorities(database)
        self.certificates = Certificates(database)
        self.certificate_upkeep = CertificateUpkeep(database)
        self.trust = Trust(database)
        self.rollovers = Rollovers(database)
        self.expiring_certificates = ExpiringCertificates(database)
        self.events = Events(database)
