"""`meshgate config`."""

import json

import click

from meshgate.app.cli.output import Printer
from meshgate.app.cli.setting_options import Command, with_settings
from meshgate.app.errors import ConfigError
from meshgate.app.settings.setting_table import TABLE
from meshgate.app.settings.settings import Settings
from meshgate.app.settings.settings_doc import env_example, reference


@click.command(cls=Command, short_help="Print the effective settings and their origins.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--env-example", "example", is_flag=True, help="Print a .env file with every setting, commented, instead."
)
@click.option("--reference", "page", is_flag=True, help="Print the page of all settings, in Markdown, instead.")
@with_settings()
def config(settings: Settings, *, as_json: bool, example: bool, page: bool) -> None:
    """Print the effective settings and where each came from, secrets masked.

    Takes the flags of run, and shows what run would use. Exits with 2 if run would refuse it.
    """
    if example:
        click.echo(env_example(), nl=False)
        return
    if page:
        click.echo(reference(), nl=False)
        return
    shown = {setting.name: (settings.shown(setting.name), settings.origin(setting.name).value) for setting in TABLE}
    if as_json:
        values = {name: {"value": value or None, "origin": origin} for name, (value, origin) in shown.items()}
        click.echo(json.dumps(values, indent=2))
    else:
        rows = [(name, value or "-", origin) for name, (value, origin) in shown.items()]
        Printer().table(("NAME", "VALUE", "ORIGIN"), rows)
    _check_consul(settings)


def _check_consul(settings: Settings) -> None:
    from meshgate.adapters.consul.api import ConsulAddress, ConsulConfigError  # noqa: PLC0415 - heavy

    try:
        address = ConsulAddress.from_settings(settings.consul)
    except ConsulConfigError as error:
        raise ConfigError(str(error)) from None
    for warning in address.warnings:
        click.echo(f"note: {warning}", err=True)
