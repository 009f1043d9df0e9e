"""What a SIGHUP makes of settings that have changed since: which of them take effect at once, and which wait.

The command line and the environment of a process stay what they were, so it is the `.env` file that is read again.
What always holds: settings that cannot all be used change nothing.
"""

from dataclasses import dataclass, replace

from meshgate.app.settings.setting_table import AT_SIGHUP, BY_NAME
from meshgate.app.settings.settings import Origin, Settings


@dataclass(frozen=True, slots=True)
class Reload:
    """Settings that were read again.

    `in_force` are those to go by, `taken` the names of what changed in them, `waiting` those that need a restart.
    """

    in_force: Settings
    taken: tuple[str, ...]
    waiting: tuple[str, ...]

    @classmethod
    def of(cls, now: Settings) -> "Reload":
        """Read the settings again.

        Args:
            now: what is in force.

        Raises:
            ConfigError: they cannot be used.
        """
        wanted = now.read_again()
        changed = sorted(name for name in BY_NAME if _changed(now, wanted, name))
        taken = tuple(name for name in changed if name in AT_SIGHUP)
        fields = {BY_NAME[name].field for name in taken} - {""}
        found = {**now.found, **{name: wanted.found[name] for name in taken}}
        consul = wanted.consul if "CONSUL_HTTP_TOKEN" in taken else now.consul
        in_force = replace(now, **{field: getattr(wanted, field) for field in fields}, found=found, consul=consul)
        return cls(in_force, taken, tuple(name for name in changed if name not in AT_SIGHUP))


def _changed(now: Settings, wanted: Settings, name: str) -> bool:
    before, after = now.found[name], wanted.found[name]
    # A default may depend on the machine, which is looked at once, at the start.
    by_default = before.origin is after.origin is Origin.DEFAULT
    return not by_default and before.text != after.text
