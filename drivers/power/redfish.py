"""Redfish (DMTF DSP0266) by httpx.

Every request carries the login (HTTP Basic, which each service must offer): there is no session to
expire, to run out of, or to be left behind. It goes by TLS alone. Connections are kept.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from uuid import UUID

import httpx

from contracts.errors import HostlerError
from contracts.oobm import DEFAULT_PORTS
from contracts.power import BmcPrivilege, PowerCommand, PowerState
from drivers.errors import (
    BmcCertificateRefused,
    BmcCommandRejected,
    InsufficientPrivilege,
    LoginRefused,
)
from drivers.pool import Pool
from drivers.power import failures
from drivers.power.fields import is_placeholder, refuse, validate_address
from drivers.protocols import BmcAccess, BmcReport

PORT = DEFAULT_PORTS["redfish"]
_CONNECT_S = 5.0
_IDLE_S = 900.0  # as IPMI sessions
_ROOT = "/redfish/v1/"
_RESET_TYPES = {
    PowerCommand.ON: "On",
    PowerCommand.OFF: "ForceOff",
    PowerCommand.RESET: "ForceRestart",
    PowerCommand.CYCLE: "PowerCycle",
    PowerCommand.SOFT: "GracefulShutdown",
}
_PXE_ONCE = {"BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": "Pxe"}
_AS_EVER = {"BootSourceOverrideEnabled": "Disabled"}
# Those that every service has (DSP0266, "Roles").
_ROLES = {
    "ReadOnly": BmcPrivilege.USER,
    "Operator": BmcPrivilege.OPERATOR,
    "Administrator": BmcPrivilege.ADMINISTRATOR,
}
_STATES = {"On": PowerState.ON, "Off": PowerState.OFF}
# Of a command: the service broke down over it, or something between did.
_UNDECIDED = frozenset({500, 502, 503, 504})
_BUSY = 503


class _Client:
    """Kept connections to one BMC, each request with the login."""

    dead = False

    def __init__(self, access: BmcAccess) -> None:
        address = f"[{access.address}]" if ":" in access.address else access.address
        trusted = _public() if access.certificate is None else _trust(access.certificate)
        self.http = httpx.AsyncClient(
            base_url=f"https://{address}:{access.port or PORT}",
            auth=httpx.BasicAuth(access.user, access.password),
            verify=trusted,
            # Of the rest, each call has its own deadline.
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            trust_env=False,  # no proxy, and no password of another user's file
            headers={"Accept": "application/json", "OData-Version": "4.0"},
        )

    @classmethod
    async def open(cls, access: BmcAccess) -> "_Client":
        """Connects with the first request."""
        return cls(access)

    async def close(self) -> None:
        """Break all connections."""
        await self.http.aclose()


class RedfishDriver:
    """Connections are kept, one client for each way to reach a BMC.

    Args:
        idle: seconds after which a client that nobody has used is closed, with its password; up to
            twice as many.
    """

    def __init__(self, *, idle: float = _IDLE_S) -> None:
        self._clients = Pool(_Client.open, idle=idle)

    def validate(self, access: BmcAccess) -> None:
        """See PowerDriver."""
        validate_address(access)
        if not access.user or ":" in access.user:
            refuse("user", "must not be empty, nor have a colon in it")
        if not access.password:
            refuse("password", "must not be empty")
        if access.certificate is not None:
            _trust(access.certificate)

    async def examine(self, access: BmcAccess, *, timeout: float) -> BmcReport:  # noqa: ASYNC109
        """See PowerDriver."""
        self.validate(access)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        client = _Client(access)
        try:
            async with _deadline(access, timeout):
                system = await self._system(access, client.http)
            privilege = await self._privilege(access, client.http, deadline - loop.time())
        finally:
            await client.close()
        return BmcReport(_guid(system), privilege, _state(system))

    async def power_state(self, access: BmcAccess, *, timeout: float) -> PowerState:  # noqa: ASYNC109
        """See PowerDriver."""
        return (await self.power_state_and_guid(access, timeout=timeout))[0]

    async def power_state_and_guid(
        self,
        access: BmcAccess,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> tuple[PowerState, str | None]:
        """See SessionKeeper."""
        self.validate(access)
        async with _deadline(access, timeout), self._clients.use(access) as client:
            system = await self._system(access, client.http)
        return _state(system), _guid(system)

    async def set_power(
        self,
        access: BmcAccess,
        command: PowerCommand,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> None:
        """See PowerDriver."""
        self.validate(access)
        sent = False
        try:
            async with _deadline(access, timeout), self._clients.use(access) as client:
                system = await self._system(access, client.http)
                target, kind = _reset(access, system, command)
                sent = True
                response = await client.http.post(target, json={"ResetType": kind})
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _not_connected(access, error) from error
        except httpx.RequestError as error:
            raise failures.outcome_unknown(access, command.value) from error
        except HostlerError as error:
            if sent:
                raise failures.outcome_unknown(access, command.value) from error
            raise
        if response.status_code in _UNDECIDED:
            raise failures.outcome_unknown(access, command.value)
        _check(access, f"switch power {command.value}", response)

    async def check_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        """See NetworkBooter."""
        self.validate(access)
        async with _deadline(access, timeout), self._clients.use(access) as client:
            _require_pxe(access, await self._system(access, client.http))

    async def set_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        """See NetworkBooter."""
        self.validate(access)
        async with _deadline(access, timeout), self._clients.use(access) as client:
            system = await self._system(access, client.http)
            _require_pxe(access, system)
            response = await _change_boot(access, client.http, system, _PXE_ONCE)
            _check(access, "boot it from the network", response)
            if not _boots_from_network_once(await self._system(access, client.http)):
                raise failures.boots_as_before(access)

    async def clear_network_boot(self, access: BmcAccess, *, timeout: float) -> None:  # noqa: ASYNC109
        """See NetworkBooter."""
        self.validate(access)
        async with _deadline(access, timeout), self._clients.use(access) as client:
            system = await self._system(access, client.http)
            if not _boots_from_network_once(system):
                return
            response = await _change_boot(access, client.http, system, _AS_EVER)
            _check(access, "boot it as before", response)
            if _boots_from_network_once(await self._system(access, client.http)):
                raise failures.boots_from_network_still(access)

    async def change_password(
        self,
        access: BmcAccess,
        new_password: str,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> None:
        """See PowerDriver."""
        renewed = replace(access, password=new_password)
        self.validate(renewed)
        async with _deadline(access, timeout):
            try:
                await self._set_password(access, new_password)
            except LoginRefused as refused:
                # Done by an earlier call, perhaps, whose answer was lost.
                try:
                    await self._log_in(renewed)
                except LoginRefused:
                    raise refused from None
            else:
                try:
                    await self._log_in(renewed)
                except LoginRefused as error:
                    raise failures.password_not_proven(renewed) from error

    async def _set_password(self, access: BmcAccess, password: str) -> None:
        async with self._clients.use(access) as kept:
            await self._set_password_by(kept.http, access, password)

    async def _set_password_by(
        self, client: httpx.AsyncClient, access: BmcAccess, password: str
    ) -> None:
        await self._system(access, client)  # is it the right BMC?
        path, account = await self._account(access, client)
        response = await _patch(access, client, path, account, {"Password": password})
        # BMCs quote the values that they refuse.
        _check(access, "change a password", response, quoting=False)

    async def _account(
        self, access: BmcAccess, client: httpx.AsyncClient
    ) -> tuple[str, Mapping[str, Any]]:
        """The user's own, and where it is."""
        root = await _get(access, client, _ROOT)
        service = await _get(access, client, _link(access, root, "AccountService"))
        accounts = await _get(access, client, _link(access, service, "Accounts"))
        for member in accounts.get("Members", ()):
            path = _path(access, member)
            account = await _get(access, client, path)
            if account.get("UserName") == access.user:
                return path, account
        raise failures.no_account(access)

    async def _privilege(
        self, access: BmcAccess, client: httpx.AsyncClient, seconds: float
    ) -> BmcPrivilege | None:
        """By the account's role. Not every login may see accounts, some BMCs have hundreds, and
        roles may be of their own making: the look itself does not depend on it."""
        try:
            async with _deadline(access, seconds):
                _, account = await self._account(access, client)
        except HostlerError:
            return None
        return _ROLES.get(str(account.get("RoleId")))

    async def _log_in(self, access: BmcAccess) -> Mapping[str, Any]:
        """By a connection of its own."""
        client = _Client(access)
        try:
            return await self._system(access, client.http)
        finally:
            await client.close()

    async def _system(self, access: BmcAccess, client: httpx.AsyncClient) -> Mapping[str, Any]:
        """The machine, which is the right one."""
        root = await _get(access, client, _ROOT)
        systems = await _get(access, client, _link(access, root, "Systems"))
        members = [_path(access, member) for member in systems.get("Members", ())]
        if not members:
            raise _no_redfish(access, "it has no system")
        shown: dict[str, str | None] = {}
        for path in members:
            system = await _get(access, client, path)
            shown[path] = _guid(system)
            known = access.guid is not None
            if (known and shown[path] == access.guid) or (not known and len(members) == 1):
                return system
        if access.guid is None:
            raise _several_systems(access, shown)
        others = [guid for guid in shown.values() if guid is not None]
        if len(others) < len(shown):
            raise failures.unidentified(access)
        raise failures.wrong_bmc(access, ", ".join(others))

    async def forget(self, host: str) -> None:
        """See PowerDriver."""
        await self._clients.forget(host)

    async def close(self) -> None:
        """See PowerDriver."""
        await self._clients.close()


@cache
def _public() -> ssl.SSLContext:
    """The public CAs. To read them takes 50 ms, which each of a thousand BMCs would cost."""
    return httpx.create_ssl_context(trust_env=False)


def _trust(certificate: str) -> ssl.SSLContext:
    """Nothing but these certificates. BMCs' own seldom have their address in them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=certificate)
    except (ssl.SSLError, ValueError):
        refuse("certificate", "must be certificates in PEM")
    return context


@asynccontextmanager
async def _deadline(access: BmcAccess, seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise failures.too_late(access) from None


async def _send(access: BmcAccess, request: Any) -> httpx.Response:
    """A request that may be repeated."""
    try:
        response: httpx.Response = await request
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _not_connected(access, error) from error
    except httpx.RequestError as error:
        raise failures.unreachable(access, "the connection broke") from error
    return response


async def _get(access: BmcAccess, client: httpx.AsyncClient, path: str) -> Mapping[str, Any]:
    response = await _send(access, client.get(path))
    _check(access, f"show {path}", response)
    try:
        resource = response.json()
    except ValueError:
        raise _no_redfish(access, f"{path} is no JSON") from None
    if not isinstance(resource, dict):
        raise _no_redfish(access, f"{path} is no resource")
    return resource


async def _patch(
    access: BmcAccess,
    client: httpx.AsyncClient,
    path: str,
    shown: Mapping[str, Any],
    change: Mapping[str, Any],
) -> httpx.Response:
    """`shown`: the resource as it was."""
    tag = shown.get("@odata.etag")
    headers = {"If-Match": tag} if tag else {}
    return await _send(access, client.patch(path, json=change, headers=headers))


async def _change_boot(
    access: BmcAccess,
    client: httpx.AsyncClient,
    system: Mapping[str, Any],
    boot: Mapping[str, str],
) -> httpx.Response:
    return await _patch(access, client, _path(access, system), system, {"Boot": boot})


def _check(access: BmcAccess, what: str, response: httpx.Response, *, quoting: bool = True) -> None:
    status = response.status_code
    if response.is_success:
        return
    said = _said(response) if quoting else ""
    if status == httpx.codes.UNAUTHORIZED:
        raise failures.login_refused(access)
    if status == httpx.codes.FORBIDDEN:
        raise InsufficientPrivilege(
            f"The BMC of {access.name} does not let {access.user} {what}{said}.",
            remedy="Give that account another role on the BMC (Administrator, or Operator for "
            "power alone); some refuse everything until a first password was changed.",
            details={"privilege": access.privilege.value},
        )
    if status == _BUSY:
        raise failures.unreachable(access, "it is busy (HTTP 503)")
    raise BmcCommandRejected(
        f"The BMC of {access.name} refused to {what}: HTTP {status}{said}.",
        remedy="See what its own log says about that.",
        details={"code": status},
    )


def _said(response: httpx.Response) -> str:
    """The BMC's own words, if they are Redfish's."""
    try:
        error = response.json()["error"]
        infos = error.get("@Message.ExtendedInfo") or [{}]
        text = str(infos[0].get("Message") or error["message"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    return f" ({text[:300].rstrip('.')})"


def _link(access: BmcAccess, resource: Mapping[str, Any], name: str) -> str:
    return _path(access, resource.get(name))


def _path(access: BmcAccess, reference: Any) -> str:
    """Of a reference: never to another machine, which would be given the password."""
    path = reference.get("@odata.id") if isinstance(reference, dict) else None
    if not isinstance(path, str) or not path.startswith("/") or path.startswith("//"):
        raise _no_redfish(access, "a reference that is needed is missing")
    return path


def _guid(system: Mapping[str, Any]) -> str | None:
    try:
        guid = UUID(system.get("UUID"))
    except (ValueError, TypeError, AttributeError):
        return None
    return None if is_placeholder(guid) else str(guid)


def _state(system: Mapping[str, Any]) -> PowerState:
    return _STATES.get(str(system.get("PowerState")), PowerState.UNKNOWN)


def _boots_from_network_once(system: Mapping[str, Any]) -> bool:
    shown = system.get("Boot")
    return isinstance(shown, dict) and shown.items() >= _PXE_ONCE.items()


def _reset(access: BmcAccess, system: Mapping[str, Any], command: PowerCommand) -> tuple[str, str]:
    """Where the command goes, and its name there."""
    action = system.get("Actions", {}).get("#ComputerSystem.Reset")
    target = action.get("target") if isinstance(action, dict) else None
    path = _path(access, {"@odata.id": target})
    kind = _RESET_TYPES[command]
    offered = action.get("ResetType@Redfish.AllowableValues")
    if offered is not None and kind not in offered:
        raise BmcCommandRejected(
            f"The BMC of {access.name} does not offer {kind}, which {command.value} would be: only "
            f"{', '.join(map(str, offered))}.",
            remedy="Use another action: reset, or off and then on.",
        )
    return path, kind


def _several_systems(access: BmcAccess, shown: Mapping[str, str | None]) -> BmcCommandRejected:
    """Of a chassis with blades: any of them may be the wrong one."""
    listed = ", ".join(f"{path} ({guid or 'no UUID'})" for path, guid in shown.items())
    return BmcCommandRejected(
        f"The BMC of {access.name} at {access.address} manages {len(shown)} systems, and nothing "
        f"tells which of them is the host: {listed}.",
        remedy="Give the address of a BMC that manages this host alone.",
    )


def _require_pxe(access: BmcAccess, system: Mapping[str, Any]) -> None:
    """Raises BmcCommandRejected unless it can boot from the network once, as far as it tells."""
    boot = system.get("Boot")
    offered = (
        boot.get("BootSourceOverrideTarget@Redfish.AllowableValues", ["Pxe"])
        if isinstance(boot, dict)
        else []
    )
    if "Pxe" not in offered:
        raise BmcCommandRejected(
            f"The BMC of {access.name} does not offer to boot it from the network: only "
            f"{', '.join(map(str, offered)) or 'what it boots from anyway'}.",
            remedy="Boot it from the network by its console.",
        )


def _not_connected(access: BmcAccess, error: httpx.TransportError) -> HostlerError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BmcCertificateRefused(
                f"The certificate of the BMC of {access.name} ({access.address}) is not trusted: "
                f"{cause.verify_message}.",
                remedy="Configure the certificate that it has, or that of the CA that signed it.",
            )
        cause = cause.__cause__ or cause.__context__
    return failures.unreachable(access, str(error).rstrip("."))


def _no_redfish(access: BmcAccess, because: str) -> BmcCommandRejected:
    return BmcCommandRejected(
        f"What answers at {access.address} for the BMC of {access.name} is no Redfish service: "
        f"{because}.",
        remedy="See whether Redfish is switched on there, and its port.",
    )
