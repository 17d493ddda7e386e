"""The table of operators' settings in docs/settings.md: `python -m tests.settings_table` writes it.

`tests/test_docs.py` fails while the document has another one.
"""

import json
import re
from pathlib import Path
from typing import Any

from contracts.settings import SETTINGS, Setting, SettingScope

COMMAND = "python -m tests.settings_table"
DOCUMENT = Path(__file__).parents[1] / "docs" / "settings.md"

_HEAD = (
    "| Setting | Default | Unit | Possible | Scopes | Takes effect | Meaning |\n"
    "|---|---|---|---|---|---|---|\n"
)
_TABLE = re.compile(re.escape(_HEAD) + r"(?:\|.*\n)*")


def table() -> str:
    """What the document has to have."""
    return _HEAD + "".join(_row(setting) for setting in SETTINGS.values())


def updated(text: str) -> str:
    """The document's text with the table of now."""
    written, tables = _TABLE.subn(lambda _: table(), text)
    if tables != 1:
        raise ValueError(f"{DOCUMENT} has {tables} tables that begin with\n{_HEAD}")
    return written


def _row(setting: Setting[Any]) -> str:
    scopes = [scope for scope in SettingScope if scope in setting.scopes]
    cells = (
        f"`{setting.name}`",
        f"`{json.dumps(setting.dump(setting.default))}`",
        setting.unit or "",
        setting.possible,
        "all" if len(scopes) == len(SettingScope) else ", ".join(scopes),
        setting.effect,
        setting.description,
    )
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
