"""The admin address's answers as the commands read them. Fields that are not used here may come and go."""

import msgspec

from meshgate.app.settings.setting_types import HostPort


class Endpoint(msgspec.Struct):
    """An endpoint of a route."""

    address: str
    port: int
    healthy: bool
    weight: int
    node: str
    instance: str

    def __str__(self) -> str:
        return f"{HostPort(self.address, self.port)}{'' if self.healthy else ' unhealthy'}"


class Route(msgspec.Struct):
    """A route."""

    sni: str
    match: str
    kind: str
    endpoints: list[Endpoint]

    @property
    def healthy(self) -> int:
        """How many of its endpoints are healthy."""
        return sum(endpoint.healthy for endpoint in self.endpoints)


class Routes(msgspec.Struct):
    """`/routes`."""

    datacenter: str
    partition: str
    trust_domain: str
    routes: list[Route]


class Step(msgspec.Struct):
    """A step of a decision."""

    rule: str
    outcome: str


class Explanation(msgspec.Struct):
    """`/explain`."""

    sni: str
    decision: str
    reason: str | None
    route: str | None
    kind: str | None
    endpoints: list[Endpoint]
    steps: list[Step]


class Stream(msgspec.Struct):
    """An open stream, an item of `/connections`."""

    route: str | None


class ServerInfo(msgspec.Struct):
    """`/server_info`."""

    version: str
    state: str
    uptime_seconds: float
    problems: list[str] = []
