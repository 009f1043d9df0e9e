"""The summaries of services that Consul's web pages are made of, as far as they tell which services have changed.

`/v1/internal/ui/services` answers for all services at once what no documented endpoint does: how many instances each
has, on which nodes, and how many of their checks pass. It is not documented, so nothing depends on it but how soon the
change of a service without traffic is noticed.
"""

import msgspec

from .wire import decoder


class _Summary(msgspec.Struct, rename="pascal", gc=False):
    name: str
    nodes: tuple[str, ...] | None = None
    instance_count: int | None = 0
    checks_passing: int | None = 0
    checks_warning: int | None = 0
    checks_critical: int | None = 0
    connected_with_proxy: bool | None = False


def _digests(rows: list[_Summary] | None) -> dict[str, int]:
    return {row.name: _digest(row) for row in rows or ()}


def _digest(row: _Summary) -> int:
    checks = row.checks_passing, row.checks_warning, row.checks_critical
    return hash((*sorted(row.nodes or ()), row.instance_count, *checks, row.connected_with_proxy))


decode_summaries = decoder(list[_Summary] | None, _digests)
