"""Who may do what through the API."""

from enum import StrEnum

from contracts.base import Contract


class Role(StrEnum):
    """What a token may do; each role may do what the ones before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


class Principal(Contract):
    """The bearer of a valid token."""

    name: str
    role: Role
