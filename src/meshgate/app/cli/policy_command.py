"""`meshgate policy`."""

import click

from meshgate.app.cli.setting_options import Command, with_settings
from meshgate.app.settings.settings import Settings


@click.command(cls=Command, short_help="Print the ACL policy that the gateway needs.")
@click.option("--enterprise", is_flag=True, help="For Consul Enterprise: all admin partitions and namespaces.")
@with_settings({"MESHGATE_SERVICE"})
def policy(settings: Settings, *, enterprise: bool) -> None:
    """Print the ACL policy (HCL) that this gateway needs, and no more.

    For example: meshgate policy | consul acl policy create -name mesh-gateway -rules -
    """
    from meshgate.adapters.consul.policy import acl_policy  # noqa: PLC0415 - only needed here

    click.echo(acl_policy(settings.service, enterprise=enterprise).rstrip("\n"))
