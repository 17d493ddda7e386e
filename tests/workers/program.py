"""The `hostler` command with the process commands alone, for tests that run it for real."""

import typer

from cli.processes import register

app = typer.Typer()
register(app)

if __name__ == "__main__":
    app()
