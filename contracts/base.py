"""The base of every model that crosses a boundary, and the field types they share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer, StringConstraints

# RFC 1123 labels: names appear in workflow ids, URLs, file names and shell-free argument lists.
Name = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=63,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
    ),
]

# libvirt allows nearly anything in a domain name; only the empty one is certainly a mistake, and
# NUL, which neither XML nor PostgreSQL can hold.
VmName = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]

# PostgreSQL stores no NUL in a text.
Reason = Annotated[str, StringConstraints(max_length=1000, pattern=r"^[^\x00]*$")]

# JSON has no sets: the same set is always the same text.
SortedInJson = PlainSerializer(sorted, return_type=list[str], when_used="json")


class Contract(BaseModel):
    """A frozen model. Unknown fields are refused: a typo must not silently mean the default."""

    model_config = ConfigDict(frozen=True, extra="forbid")
