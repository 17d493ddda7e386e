"""Credentials are read from files or from a terminal; never an argument."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from contracts.errors import InvalidInput
from contracts.validation import say_error

PasswordFileOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="File with the user's password; `-` is stdin."),
]
PrivateKeyFileOption = Annotated[
    str | None, typer.Option(metavar="FILE", help="File with the user's private SSH key.")
]


def from_files(password_file: str | None, private_key_file: str | None) -> dict[str, str]:
    """The one field of a body that is secret; none without a file. Raises InvalidInput."""
    if password_file is not None and private_key_file is not None:
        raise InvalidInput("Give --password-file or --private-key-file, not both.")
    if private_key_file is not None:
        return {"private_key": read_file("--private-key-file", private_key_file)}
    if password_file is not None:
        # A line break at the end is the editor's.
        return {"password": read_file("--password-file", password_file).rstrip("\r\n")}
    return {}


def read_file(option: str, name: str) -> str:
    """The text of the file that the option names, `-` being stdin; never shown. Raises
    InvalidInput."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{option} {name} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        # The error itself would show what is in the file.
        raise InvalidInput(f"{option} {name} is no text in UTF-8.") from None
    if not text.strip():
        raise InvalidInput(f"{option} {name} is empty.")
    return text


def check_file(option: str, adapter: TypeAdapter[str], text: str) -> str:
    """What is sent of the text that was read for the option. Raises InvalidInput."""
    try:
        return adapter.validate_python(text)
    except ValidationError as error:
        raise InvalidInput(f"{option}: {say_error(error.errors()[0])}.") from None
