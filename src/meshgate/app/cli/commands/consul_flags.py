"""The flags of commands that ask Consul."""

from typing import Final

from meshgate.app.settings.setting_table import CONSUL, TABLE

CONSUL_SETTINGS: Final = frozenset(setting.name for setting in TABLE if setting.section == CONSUL)
