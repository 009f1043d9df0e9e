"""What the summaries of Consul's web pages tell, and the list of names, over HTTP."""

from typing import Any

import pytest

from meshgate.adapters.consul.api import Cursor, InvalidAnswerError

from .connected import connected

PATH = "/v1/internal/ui/services"
ROW = {
    "Kind": "connect-proxy",
    "Name": "web-sidecar-proxy",
    "Tags": None,
    "Nodes": ["n1", "n2"],
    "InstanceCount": 2,
    "ChecksPassing": 4,
    "ChecksWarning": 0,
    "ChecksCritical": 0,
}


@pytest.mark.parametrize(
    ("change", "tells"),
    [
        ({}, False),
        ({"Nodes": ["n2", "n1"]}, False),
        ({"Tags": ["v2"]}, False),
        ({"Nodes": ["n1", "n3"]}, True),
        ({"InstanceCount": 3}, True),
        ({"ChecksPassing": 3, "ChecksCritical": 1}, True),
        ({"ChecksPassing": 3, "ChecksWarning": 1}, True),
        ({"ConnectedWithProxy": True}, True),
    ],
)
async def test_a_summary_changes_with_the_instances_their_nodes_and_their_health(
    change: dict[str, Any], tells: bool
) -> None:
    async with connected() as (double, client):
        double.set(PATH, [ROW, {"Name": "api"}])
        before = await client.summaries(Cursor())
        double.set(PATH, [ROW | change, {"Name": "api"}])
        after = await client.summaries(Cursor(before.index or 0, wait=0.5))
        assert before.value.keys() == after.value.keys() == {"web-sidecar-proxy", "api"}
        assert (before.value["web-sidecar-proxy"] != after.value["web-sidecar-proxy"]) is tells
        assert before.value["api"] == after.value["api"]
        assert "index=" in double.seen[1].target


async def test_no_summaries_at_all_are_an_answer_and_garbage_is_none() -> None:
    async with connected() as (double, client):
        double.set(PATH, None)
        assert (await client.summaries(Cursor())).value == {}
        double.set(PATH, b"<html>")
        with pytest.raises(InvalidAnswerError):
            await client.summaries(Cursor())


async def test_the_same_list_of_names_is_the_same_object_and_another_one_is_read() -> None:
    async with connected() as (double, client):
        double.set("/v1/catalog/services", {"web": [], "api": ["v1"]})
        first = await client.service_names(Cursor())
        again = await client.service_names(Cursor())
        assert first.value == ("api", "web")
        assert again.value is first.value
        double.set("/v1/catalog/services", {"web": [], "db": []})
        assert (await client.service_names(Cursor())).value == ("db", "web")
