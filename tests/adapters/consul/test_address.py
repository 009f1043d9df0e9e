"""The rules are those of Consul's own client: see `meshgate.adapters.consul.api.address`."""

import pytest

from meshgate.adapters.consul.api.address import FLAG_TOKEN, FLAG_TOKEN_FILE, ConsulAddress, ConsulConfigError

SECRET = "5ecc9f1b-secret"


def address(**values: str) -> ConsulAddress:
    return ConsulAddress.from_settings({f"CONSUL_{name}": value for name, value in values.items()})


def test_nothing_set_means_the_local_agent_over_plain_http() -> None:
    assert ConsulAddress.from_settings({}).base_url == "http://127.0.0.1:8500"
    assert ConsulAddress.from_settings({"CONSUL_HTTP_ADDR": "", "OTHER": "x"}) == ConsulAddress()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("consul.example:8500", "http://consul.example:8500"),
        ("http://consul.example:8500", "http://consul.example:8500"),
        ("https://consul.example:8501", "https://consul.example:8501"),
        ("https://consul.example", "https://consul.example"),
        ("https://consul.example/", "https://consul.example"),
        ("https://consul.example/behind/proxy/", "https://consul.example/behind/proxy"),
        ("consul.example:8500/prefix", "http://consul.example:8500/prefix"),
        ("[::1]:8500", "http://[::1]:8500"),
        ("https://[fe80::1]:8501/p", "https://[fe80::1]:8501/p"),
        ("https://[::1]", "https://[::1]"),
        (":8500", "http://127.0.0.1:8500"),
    ],
)
def test_every_form_of_an_address_is_read(text: str, url: str) -> None:
    assert address(HTTP_ADDR=text).base_url == url
    assert address(HTTP_ADDR=text).url == url


def test_a_unix_socket_is_dialled_and_keeps_plain_http() -> None:
    read = address(HTTP_ADDR="unix:///run/consul.sock")
    assert read.unix_path == "/run/consul.sock"
    assert read.base_url == "http://localhost"
    assert read.url == "unix:///run/consul.sock"


@pytest.mark.parametrize("scheme", ["ftp", "HTTP", "tcp"])
def test_an_unknown_scheme_is_an_error_in_the_words_of_consul(scheme: str) -> None:
    with pytest.raises(ConsulConfigError, match=f"^Unknown protocol scheme: {scheme}$"):
        address(HTTP_ADDR=f"{scheme}://127.0.0.1:8500")


@pytest.mark.parametrize(
    "text", ["::1", "http://", "host:port", "host:99999", "a b:8500", "host?x:1", "unix://", "[::1"]
)
def test_what_is_no_address_is_one_line_of_error(text: str) -> None:
    with pytest.raises(ConsulConfigError, match="CONSUL_HTTP_ADDR") as raised:
        address(HTTP_ADDR=text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", [f"http://user:{SECRET}@host:8500", f"user:{SECRET}@host:bad", f"{SECRET}@[::1"])
def test_credentials_in_the_address_are_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ConsulConfigError) as raised:
        address(HTTP_ADDR=text)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_the_spellings_of_true(text: str) -> None:
    assert address(HTTP_SSL=text).scheme == "https"
    assert address(HTTP_SSL_VERIFY=text).verify


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_the_spellings_of_false(text: str) -> None:
    assert address(HTTP_SSL=text).scheme == "http"
    assert not address(HTTP_SSL_VERIFY=text).verify


@pytest.mark.parametrize("text", ["yes", "on", "tRUE", " true", "2"])
def test_what_is_no_boolean_is_ignored_with_a_warning(text: str) -> None:
    read = address(HTTP_SSL=text, HTTP_SSL_VERIFY=text)
    assert (read.scheme, read.verify) == ("http", True)
    assert read.warnings == (
        f"CONSUL_HTTP_SSL is no boolean and is ignored: {text!r}",
        f"CONSUL_HTTP_SSL_VERIFY is no boolean and is ignored: {text!r}",
    )


@pytest.mark.parametrize("text", ["http://127.0.0.1:8501", "unix:///run/consul.sock"])
def test_an_address_does_not_take_back_tls_that_was_asked_for(text: str) -> None:
    assert address(HTTP_ADDR=text, HTTP_SSL="true").scheme == "https"


@pytest.mark.parametrize(("given", "missing"), [("CLIENT_CERT", "CLIENT_KEY"), ("CLIENT_KEY", "CLIENT_CERT")])
def test_client_certificate_and_key_come_together_or_not_at_all(given: str, missing: str) -> None:
    with pytest.raises(ConsulConfigError, match=f"CONSUL_{missing} is missing"):
        address(**{given: "/some/file"})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("server.dc1.consul", "server.dc1.consul"),
        ("server.dc1.consul:8501", "server.dc1.consul"),
        ("[::1]:8501", "::1"),
        ("::1", "::1"),
    ],
)
def test_the_port_is_cut_from_the_tls_server_name(text: str, name: str) -> None:
    assert address(TLS_SERVER_NAME=text).tls_server_name == name


@pytest.mark.parametrize(
    ("text", "auth"), [("user:pass:word", ("user", "pass:word")), ("user", ("user", "")), ("", None)]
)
def test_basic_authentication_is_cut_at_the_first_colon(text: str, auth: tuple[str, str] | None) -> None:
    assert address(HTTP_AUTH=text).http_auth == auth


@pytest.mark.parametrize(
    ("values", "token", "file"),
    [
        ({}, "", ""),
        ({"CONSUL_HTTP_TOKEN": "e"}, "e", ""),
        ({"CONSUL_HTTP_TOKEN": "e", "CONSUL_HTTP_TOKEN_FILE": "ef"}, "e", "ef"),
        ({FLAG_TOKEN: "f", "CONSUL_HTTP_TOKEN": "e", "CONSUL_HTTP_TOKEN_FILE": "ef"}, "f", ""),
        ({FLAG_TOKEN_FILE: "ff", FLAG_TOKEN: "f", "CONSUL_HTTP_TOKEN_FILE": "ef"}, "f", "ff"),
        ({FLAG_TOKEN_FILE: "ff", "CONSUL_HTTP_TOKEN": "e"}, "e", "ff"),
    ],
)
def test_the_token_of_highest_rank_wins(values: dict[str, str], token: str, file: str) -> None:
    read = ConsulAddress.from_settings(values)
    assert (read.token, read.token_file) == (token, file)


def test_no_secret_is_in_the_repr() -> None:
    assert SECRET not in repr(address(HTTP_TOKEN=SECRET, HTTP_AUTH=f"user:{SECRET}"))
