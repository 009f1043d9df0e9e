"""The client that the settings describe."""

from meshgate.adapters.consul import ConsulAddress, ConsulClient, ConsulConfigError, Login
from meshgate.app.errors import ConfigError
from meshgate.app.settings.settings import Settings


def client_of(settings: Settings) -> ConsulClient:
    """A client to the local agent, to be used as an asynchronous context manager.

    Raises:
        ConfigError: Consul's address, the token file, the bearer token file or TLS files are wrong.
    """
    file = settings.login_bearer_token_file
    login = Login(settings.login_auth_method, str(file)) if file else None
    try:
        return ConsulClient(ConsulAddress.from_settings(settings.consul), login=login)
    except (ConsulConfigError, ValueError) as error:
        raise ConfigError(str(error)) from None
