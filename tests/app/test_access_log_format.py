import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from meshgate.app.logs.access_log_format import DEFAULT_JSON, FormatError, Formatter

from .stream_records import RECORD, REFUSED


@pytest.mark.parametrize(
    ("operator", "value", "refused"),
    [
        ("%START_TIME%", "2023-11-14T22:13:20.125Z", "2023-11-14T22:13:20.125Z"),
        ("%START_TIME(%Y/%m/%d %H:%M:%S.%3f %%)%", "2023/11/14 22:13:20.125 %", "2023/11/14 22:13:20.125 %"),
        ("%START_TIME(%s %3s %6f)%", "1700000000 1700000000125 125000", "1700000000 1700000000125 125000"),
        ("%DURATION%", "1234", "1234"),
        ("%BYTES_RECEIVED%", "10", "10"),
        ("%BYTES_SENT%", "20", "20"),
        ("%REQUESTED_SERVER_NAME%", "web.default.dc2.internal.td.consul", "-"),
        ("%REQUESTED_SERVER_NAME:3%", "web", "-"),
        ("%UPSTREAM_HOST%", "[2001:db8::7]:8443", "-"),
        ("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "2001:db8::7", "-"),
        ("%UPSTREAM_REMOTE_PORT%", "8443", "-"),
        ("%UPSTREAM_CLUSTER%", "dc2.internal.td.consul", "-"),
        ("%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "2", "0"),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", "192.0.2.1:4000", "192.0.2.1:4000"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "192.0.2.1", "192.0.2.1"),
        ("%DOWNSTREAM_REMOTE_PORT%", "4000", "4000"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "192.0.2.1:4000", "192.0.2.1:4000"),
        ("%RESPONSE_FLAGS%", "UC", "NR"),
        ("%RESPONSE_CODE%", "0", "0"),
        ("%CONNECTION_TERMINATION_DETAILS%", "-", "no_sni"),
        ("%REQ(:METHOD)%", "-", "-"),
        ("%ROUTE_NAME%", "-", "-"),
    ],
)
def test_envoys_operators_say_what_is_known_of_a_stream(operator: str, value: str, refused: str) -> None:
    formatter = Formatter()
    line = formatter.text(f"[{operator}] 100%%\n")
    assert line(RECORD) == f"[{value}] 100%"
    assert line(REFUSED) == f"[{refused}] 100%"
    assert formatter.unsupported == set()


def test_an_operator_that_is_not_known_is_named_and_stays_empty() -> None:
    formatter = Formatter()
    assert formatter.text("%DURATION% %NO_SUCH(a)% %DYNAMIC_METADATA(x:y)% 5% %lower%")(RECORD) == "1234 - - 5% %lower%"
    assert formatter.unsupported == {"NO_SUCH", "DYNAMIC_METADATA"}


def test_json_keeps_types_and_shape() -> None:
    shape = {
        "took": "%DURATION%",
        "text": "%DURATION% ms",
        "sni": "%REQUESTED_SERVER_NAME%",
        "fixed": [1, True, None, {"deep": "%BYTES_SENT%"}],
    }
    line = Formatter().json(json.dumps(shape))
    assert json.loads(line(RECORD)) == {
        "took": 1234,
        "text": "1234 ms",
        "sni": RECORD.sni,
        "fixed": [1, True, None, {"deep": 20}],
    }
    assert json.loads(line(REFUSED))["sni"] is None


def test_the_format_that_consul_takes_by_default_has_all_its_keys() -> None:
    formatter = Formatter()
    entry: dict[str, Any] = json.loads(formatter.fields(DEFAULT_JSON)(RECORD))
    assert formatter.unsupported == set()
    assert len(entry) == 24
    assert entry["start_time"] == "2023-11-14T22:13:20.125Z"
    assert entry["upstream_cluster"] == "dc2.internal.td.consul"
    assert entry["duration"] == 1234
    assert entry["method"] is None


@pytest.mark.parametrize(
    "form",
    ["no JSON", "[1]", '"text"', "{" * 100_000, json.dumps({"a": [[[[[[[[1]]]]]]]]}), '{"a": "%s"}' % ("x" * 20_000)],
)
def test_what_is_no_format_is_refused(form: str) -> None:
    with pytest.raises(FormatError):
        Formatter().json(form)


def test_a_strange_time_format_stays_empty() -> None:
    assert Formatter().text("%START_TIME(\udcff%Q)%")(RECORD).isascii()


def test_a_line_is_one_line_of_printable_text_whatever_a_stranger_sent() -> None:
    hostile = replace(RECORD, sni='a"\n\x1b[2J\u202e\x7f')
    text = Formatter().text("%REQUESTED_SERVER_NAME% end")(hostile)
    assert text.isprintable()
    assert text.endswith(" end")
    line = Formatter().fields({"sni": "%REQUESTED_SERVER_NAME%"})(hostile)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["sni"] == hostile.sni


PIECES = st.sampled_from(
    ["%", "(", ")", ":", "3", "START_TIME", "REQ", "DURATION", "REQUESTED_SERVER_NAME", "%s", "%Q", "\n"]
)


@given(st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join))
def test_any_text_is_a_format_and_makes_one_printable_line(form: str) -> None:
    for make in (Formatter().text, lambda text: Formatter().fields({"a": [text]})):
        for record in (RECORD, REFUSED):
            line = make(form)(record)
            assert line.isprintable()
