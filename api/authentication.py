"""Who asks, and whether they may."""

import re
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import Unauthenticated, problem_response
from contracts.access import Principal, Role
from contracts.errors import HostlerError, Refused
from inventory import Inventory

_PROTECTED = "/v1"
# What is asked for by programs that check certificates, without a token.
_PUBLIC = re.compile(r"/v1/ca/(chain|crl|[^/]+/[^/]+/crl)")

_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="bearer",
    description="A token of `hostler token create`, or the one in $HOSTLER_HOME/admin-token.",
)


class Authentication:
    """Middleware: finds out whose token a request carries, before anything of its body is read."""

    def __init__(self, app: ASGIApp, inventory: Inventory) -> None:
        self._app = app
        self._inventory = inventory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers by itself when the token is missing or wrong."""
        if scope["type"] == "http" and _is_protected(scope["path"]):
            try:
                principal = await self._identify(Headers(scope=scope))
            except HostlerError as error:
                await problem_response(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)

    async def _identify(self, headers: Headers) -> Principal:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated(
                "The request has no token.",
                remedy="Send the header Authorization: Bearer TOKEN.",
            )
        principal = await self._inventory.tokens.authenticate(token.strip())
        if principal is None:
            raise Unauthenticated(
                "The token is not valid.",
                remedy="Check it, or make one with `hostler token create NAME`.",
            )
        return principal


def _is_protected(path: str) -> bool:
    return path.startswith(_PROTECTED) and _PUBLIC.fullmatch(path) is None


def require_role(principal: Principal, role: Role) -> None:
    """Raises Refused unless the principal's role is `role` or one that may do more."""
    roles = list(Role)
    if roles.index(principal.role) < roles.index(role):
        raise Refused(
            f"The token {principal.name!r} has the role {principal.role}; this needs the role "
            f"{role}.",
            remedy=f"Make one with `hostler token create NAME --role {role}`.",
        )


class _Requires:
    """A dependency: the caller's role must be `role` or one that may do more."""

    def __init__(self, role: Role) -> None:
        self._role = role

    async def __call__(
        self,
        request: Request,
        _documented: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    ) -> Principal:
        principal: Principal | None = getattr(request.state, "principal", None)
        if principal is None:
            raise Unauthenticated("The request was not authenticated.")
        require_role(principal, self._role)
        return principal


VIEWER = Depends(_Requires(Role.VIEWER))
Operator = Annotated[Principal, Depends(_Requires(Role.OPERATOR))]
Admin = Annotated[Principal, Depends(_Requires(Role.ADMIN))]


def actor(principal: Principal) -> str:
    """Who did it, as the audit trail names them."""
    return f"token:{principal.name}"
