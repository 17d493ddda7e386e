"""What a worker serves, and what a run of it has to import."""

import importlib
import pkgutil
import subprocess
import sys

import workflows
from workflows.registry import WORKFLOWS


def test_every_workflow_is_served() -> None:
    modules = [
        importlib.import_module(f"workflows.{found.name}")
        for found in pkgutil.iter_modules(workflows.__path__)
    ]
    defined = {
        one
        for module in modules
        for one in vars(module).values()
        if isinstance(one, type) and hasattr(one, "__temporal_workflow_definition")
    }
    assert set(WORKFLOWS) == defined


def test_the_package_brings_no_workflow() -> None:
    """Each run's sandbox imports the package anew."""
    code = "import sys, workflows; print([m for m in sys.modules if m.startswith('workflows.')])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
