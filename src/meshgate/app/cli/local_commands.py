"""The commands that ask nobody: run the gateway, and what this program can say by itself.

`run` stays for months, so what only the others need is imported inside them.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click
from click.shell_completion import get_completion_class

import meshgate
from meshgate.app.cli.main import COMPLETE, SHELLS, cli, colorless
from meshgate.app.cli.setting_options import Command, Session, command, json_option, with_settings
from meshgate.app.errors import CommandError
from meshgate.app.settings.setting_table import TABLE
from meshgate.app.settings.settings import Settings

# Flags of `consul connect envoy` that say how Envoy starts and reaches Consul: unit files that are copied have them.
_ENVOYS_VALUES: Final = (
    "grpc-addr", "grpc-ca-file", "grpc-ca-path", "envoy-binary", "envoy-version", "envoy-ready-bind-address",
    "envoy-ready-bind-port", "admin-access-log-path", "prometheus-backend-port", "prometheus-scrape-path",
    "prometheus-ca-file", "prometheus-ca-path", "prometheus-cert-file", "prometheus-key-file",
)  # fmt: skip
_ENVOYS_SWITCHES: Final = (
    "no-central-config",
    "omit-deprecated-tags",
    "ignore-envoy-compatibility",
    "enable-config-gen-logging",
)


def _no_bootstrap(_: click.Context, _parameter: click.Parameter, wanted: object) -> None:
    if wanted:
        raise click.UsageError("meshgate has no bootstrap configuration to print: see meshgate config instead")


def _ignored(context: click.Context, parameter: click.Parameter, value: object) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"note: {parameter.opts[0]} is ignored: meshgate needs no xDS", err=True)


class _Run(Command):
    """Takes the command lines of `consul connect envoy -gateway=mesh` too."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - click's own
        super().__init__(*args, **options)
        hidden: dict[str, Any] = {"hidden": True, "expose_value": False}
        self.params += [click.Option([f"--{name}"], callback=_ignored, **hidden) for name in _ENVOYS_VALUES]
        self.params += [
            click.Option([f"--{name}"], is_flag=True, callback=_ignored, **hidden) for name in _ENVOYS_SWITCHES
        ]
        self.params.append(click.Option(["--mesh-gateway"], is_flag=True, **hidden))
        self.params.append(click.Option(["--bootstrap"], is_flag=True, callback=_no_bootstrap, **hidden))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Without what follows `--`, which is for Envoy."""
        if "--" in args:
            del args[args.index("--") :]
            click.echo("note: what follows -- is for Envoy and is ignored", err=True)
        return super().parse_args(ctx, args)


@command(
    "meshgate run -token-file /etc/meshgate/token",
    "meshgate run -address 10.0.0.5:8443 -wan-address gw.example.com:443 -state-dir /var/lib/meshgate",
    cls=_Run,
)
@click.option(
    "--gateway",
    metavar="mesh",
    type=click.Choice(("mesh",)),
    expose_value=False,
    help="As in consul connect envoy; only mesh.",
)
@with_settings()
def run(settings: Settings) -> int | None:
    """Run the gateway in the foreground.

    Registers with the local agent, watches Consul and relays streams until SIGTERM or Ctrl-C. Open streams then get
    time to end; a second signal stops at once. Takes the flags of consul connect envoy -gateway=mesh, and ignores those
    that are about Envoy or xDS.
    """
    taken = click.get_current_context().ensure_object(Session).taken
    with colorless():
        from meshgate.app.composition_root import run_gateway  # noqa: PLC0415 - heavy, and only needed here

        return run_gateway(settings, taken)


@command("meshgate demo", "meshgate demo --once")
@click.option("--once", is_flag=True, help="Check that all of it works, print a summary and stop.")
def demo(*, once: bool) -> int | None:
    """Show two datacenters and their gateways at work.

    Starts two Consul datacenters with a gateway each on this machine and shows traffic between them. Needs a consul
    binary: $CONSUL_BIN, or consul on the PATH. Runs until Ctrl-C and cleans up after itself.
    """
    checkout = Path(meshgate.__file__).resolve().parents[2]
    if not (checkout / "tests" / "harness" / "show.py").is_file():
        raise CommandError("the demo is not part of an installed meshgate: clone its repository and run scripts/demo")
    sys.path.insert(0, str(checkout))
    # By name: the harness is no part of the package, and types nothing that is.
    code: int | None = import_module("tests.harness.show").run_demo(once=once)
    return code


@command(
    "meshgate policy | consul acl policy create -name mesh-gateway -rules -", "meshgate policy -service edge-gateway"
)
@click.option("--enterprise", is_flag=True, help="For Consul Enterprise: all admin partitions and namespaces.")
@with_settings({"MESHGATE_SERVICE"})
def policy(settings: Settings, *, enterprise: bool) -> None:
    """Print the ACL policy that the gateway needs.

    The policy is in HCL and grants no other rights.
    """
    from meshgate.adapters.consul.policy import acl_policy  # noqa: PLC0415 - only needed here

    click.echo(acl_policy(settings.service, enterprise=enterprise).rstrip("\n"))


@command("meshgate config -env-file /etc/meshgate/env", "meshgate config --env-example > meshgate.env")
@json_option
@click.option(
    "--env-example", "example", is_flag=True, help="Print a .env file with every setting, commented, instead."
)
@click.option("--reference", "page", is_flag=True, help="Print the page of all settings, in Markdown, instead.")
@with_settings()
def config(settings: Settings, *, as_json: bool, example: bool, page: bool) -> None:
    """Print the effective settings and their origins.

    Secrets are masked. Takes the flags of run, and shows what run would use. Exits with 2 if run would refuse it.
    """
    from meshgate.app.cli.output import Printer, print_json  # noqa: PLC0415 - heavy
    from meshgate.app.gateway.from_settings import checked_client  # noqa: PLC0415 - heavy
    from meshgate.app.settings.settings_doc import env_example, reference  # noqa: PLC0415 - only needed here

    if example:
        click.echo(env_example(), nl=False)
        return
    if page:
        click.echo(reference(), nl=False)
        return
    shown = {setting.name: (settings.shown(setting.name), settings.origin(setting.name).value) for setting in TABLE}
    if as_json:
        values = {name: {"value": value or None, "origin": origin} for name, (value, origin) in shown.items()}
        print_json(values)
    else:
        rows = [(name, value or "-", origin) for name, (value, origin) in shown.items()]
        Printer().table(("NAME", "VALUE", "ORIGIN"), rows)
    for warning in checked_client(settings).address.warnings:
        click.echo(f"note: {warning}", err=True)


@command("source <(meshgate completion bash)", "meshgate completion fish | source")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    It completes commands, flags, values and names.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    complete = kind(cli, {}, "meshgate", COMPLETE)
    click.echo(complete.source())


@command("meshgate help run", name="help")
@click.argument("name", required=False, type=click.Choice(tuple(cli.commands)), metavar="[COMMAND]")
@click.pass_context
def help_(context: click.Context, name: str | None) -> None:
    """Print the help of COMMAND, or that of meshgate."""
    root = context.find_root()
    command = cli.commands[name] if name else cli
    click.echo(command.get_help(click.Context(command, root, name) if name else root))
