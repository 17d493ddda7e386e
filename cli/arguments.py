"""Arguments and options that several commands share."""

from typing import Annotated

import typer
from pydantic import StringConstraints, TypeAdapter, ValidationError

from contracts.base import Name, VmName
from contracts.maintenance import OnBlocker
from contracts.validation import say_error

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_VM_NAME: TypeAdapter[str] = TypeAdapter(VmName)
_SUBJECT: TypeAdapter[str] = TypeAdapter(Annotated[str, StringConstraints(min_length=1)])


def _checked(adapter: TypeAdapter[str], value: str) -> str:
    """Names become parts of URLs, so they are checked before there is a request to refuse."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise typer.BadParameter(say_error(error.errors()[0])) from None


def check_name(value: str) -> str:
    """The name of a zone, pod, cluster or host."""
    return _checked(_NAME, value)


def check_optional_name(value: str | None) -> str | None:
    """The same, of one that need not be given."""
    return check_name(value) if value is not None else None


def check_vm_name(value: str) -> str:
    """The name of a VM."""
    return _checked(_VM_NAME, value)


def check_subject(value: str) -> str:
    """What an operation is done to, or a workflow id that a person has chosen."""
    return _checked(_SUBJECT, value)


NameArgument = Annotated[str, typer.Argument(metavar="NAME", callback=check_name, help="Its name.")]
HostArgument = Annotated[
    str, typer.Argument(metavar="HOST", callback=check_name, help="The host's name.")
]
ClusterArgument = Annotated[
    str, typer.Argument(metavar="CLUSTER", callback=check_name, help="The cluster's name.")
]
QemuOfClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="NAME",
        callback=check_optional_name,
        help="The CA of this cluster's QEMUs instead of that of all hosts.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON, as the API gives it, for programs.")
]

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only list what would be done.")]

YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

# Of commands that may begin with a maintenance:

OnBlockerOption = Annotated[
    OnBlocker,
    typer.Option(help="With --after-maintenance: what to do with VMs that can't be live-migrated."),
]

MaxParallelOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="With --after-maintenance: live migrations at a time. "
        "[default: the cluster's setting]",
    ),
]

NoQueueOption = Annotated[
    bool,
    typer.Option(
        "--no-queue",
        help="With --after-maintenance: give up rather than wait while too many other hosts of the "
        "cluster are out.",
    ),
]

OrOffOption = Annotated[
    bool,
    typer.Option(
        "--or-off",
        help="If it has not shut down in time, take the power away.",
    ),
]
