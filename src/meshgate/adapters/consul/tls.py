"""The TLS side of the Consul client: one context, made once and shared by all connections.

Making a context reads the system's authorities (tens of milliseconds), so none is made per connection.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .address import ConsulAddress, ConsulConfigError


def tls_context(address: ConsulAddress) -> ssl.SSLContext:
    """The context that the settings ask for.

    Over plain HTTP, without any TLS file, it is an empty one. Authorities come from the CA file, else from every file
    in the CA path, else from the system (Consul's `rootcerts.ConfigureTLS`). Files are read even where the address is
    plain HTTP, so a wrong path shows at once, as it does in Consul's tools.

    Raises:
        ConsulConfigError: a file cannot be read, or holds no certificate or no matching key.
    """
    files = (address.ca_file, address.ca_path, address.client_cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if address.scheme != "https" and not any(files):
        return context
    _load_authorities(context, address)
    if address.client_cert:
        with _reading("client certificate and key", address.client_cert):
            # A password callback that gives nothing keeps OpenSSL from asking on the terminal for an encrypted key.
            context.load_cert_chain(address.client_cert, address.client_key, password=lambda: "")
    if not address.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load_authorities(context: ssl.SSLContext, address: ConsulAddress) -> None:
    if address.ca_file:
        with _reading("CA file", address.ca_file):
            context.load_verify_locations(cafile=address.ca_file)
    elif address.ca_path:
        # OpenSSL's own capath wants hashed names; Consul takes each file in the folder.
        with _reading("CA path", address.ca_path):
            files = sorted(file for file in Path(address.ca_path).iterdir() if file.is_file())
        for file in files:
            with _reading("CA file", str(file)):
                context.load_verify_locations(cafile=file)
    else:
        context.load_default_certs()


@contextmanager
def _reading(what: str, path: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise ConsulConfigError(f"{what} {path} cannot be used: {error.reason or error}") from error
    except OSError as error:
        raise ConsulConfigError(f"{what} {path} cannot be read: {error.strerror or error}") from error
