"""What a service-resolver sets beside its subsets: timeouts and load balancing, and for which routes."""

import pytest

from meshgate.core.catalog import Remote, Service, Snapshot, Subset
from meshgate.core.routes import Policy, Route

from .samples import TD3, instance, plan

INSTANCES = (instance("172.16.1.3"), instance("172.16.1.4"))


def routes(service: Service) -> dict[str, Route]:
    """The routes of a service beside another one and a remote datacenter, by what they lead to."""
    remote = Remote("dc2", (instance("10.0.1.1", datacenter="dc2", kind="mesh-gateway"),))
    table = plan(Snapshot("dc1", TD3, services=(service, Service("other", INSTANCES)), remotes=(remote,)))
    return {route.destination: route for route in table}


@pytest.mark.parametrize(
    ("policy", "choices"), [(Policy.LEAST_REQUEST, 5), (Policy.RANDOM, 2), (Policy.ROUND_ROBIN, 2)]
)
def test_load_balancing_holds_for_the_service_and_its_subsets_and_nothing_else(policy: Policy, choices: int) -> None:
    subsets = (Subset("v1", instances=INSTANCES[:1]), Subset("v2", instances=INSTANCES[1:]))
    found = routes(Service("foo", INSTANCES, subsets=subsets, policy=policy, choices=choices))
    assert {name: (route.policy, route.choice_count) for name, route in found.items()} == {
        "foo": (policy, choices),
        "v1.foo": (policy, choices),
        "v2.foo": (policy, choices),
        "other": (Policy.ROUND_ROBIN, 2),
        "dc2": (Policy.ROUND_ROBIN, 2),
    }


def test_connect_timeout_holds_for_the_service_and_its_subsets_and_nothing_else() -> None:
    subsets = (Subset("v1", instances=INSTANCES[:1]),)
    found = routes(Service("foo", INSTANCES, subsets=subsets, connect_timeout=15.0))
    timeouts = {name: route.connect_timeout for name, route in found.items()}
    assert timeouts == {"foo": 15.0, "v1.foo": 15.0, "other": None, "dc2": None}
