import pytest

from meshgate.core.weak_decode import parse_bool


@pytest.mark.parametrize(("text", "value"), [("1", True), ("T", True), ("FALSE", False), ("f", False)])
def test_a_boolean_is_read_as_go_reads_it(text: str, value: bool) -> None:
    assert parse_bool(text) is value


@pytest.mark.parametrize("text", ["yes", "tRUE"])
def test_what_go_does_not_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="true or false"):
        parse_bool(text)
