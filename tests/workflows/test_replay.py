"""Histories of real runs: a change that breaks a running workflow fails here.

They are written by `pytest tests/e2e tests/simulation --record-histories`.
"""

import asyncio
import json
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from workers.converter import HOSTLER_DATA_CONVERTER
from workers.interceptors import HostlerInterceptor
from workflows.registry import WORKFLOWS

HISTORIES = sorted((Path(__file__).parents[1] / "histories").glob("*.json"))


def test_there_is_a_history_of_every_workflow() -> None:
    texts = [path.read_text() for path in HISTORIES]
    for workflow in WORKFLOWS:
        name = workflow.__name__
        assert any(f'"workflowType":{{"name":"{name}"}}' in "".join(t.split()) for t in texts), name


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_it_replays(path: Path) -> None:
    replayer = Replayer(
        workflows=WORKFLOWS,
        data_converter=HOSTLER_DATA_CONVERTER,
        interceptors=[HostlerInterceptor()],
    )
    text = path.read_text()
    started = json.loads(text)["events"][0]["workflowExecutionStartedEventAttributes"]
    # Children are named after it.
    history = WorkflowHistory.from_json(started["workflowId"], text)
    asyncio.run(replayer.replay_workflow(history))
