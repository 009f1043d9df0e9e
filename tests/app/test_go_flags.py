import click
import pytest

from meshgate.app.cli.main import cli, normalized, options_of

OPTIONS = options_of(cli)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("run -http-addr=127.0.0.1:8500", "run --http-addr=127.0.0.1:8500"),
        ("run -token abc", "run --token abc"),
        ("run --token abc", "run --token abc"),
        ("run -expose-servers", "run --expose-servers"),
        ("run -expose-servers=true", "run --expose-servers"),
        ("run --expose-servers=0", "run --no-expose-servers"),
        ("run -register=f", "run --no-register"),
        ("run --no-register=true", "run --no-register"),
        ("run --no-register=false", "run --register"),
        ("demo -once=true", "demo --once"),
        ("demo -once=false", "demo"),
        ("run -h", "run -h"),
        ("run -help", "run --help"),
        # Values are values, whatever they look like.
        ("run --service -token=x", "run --service -token=x"),
        ("run -service -workers -workers 2", "run --service -workers --workers 2"),
        ("explain -json -- -name", "explain --json -- -name"),
        ("run -unknown=x", "run --unknown=x"),
    ],
)
def test_flags_may_be_written_as_go_programs_read_them(written: str, read: str) -> None:
    assert normalized(written.split(), OPTIONS) == read.split()


def test_a_boolean_flag_refuses_other_values_without_repeating_them() -> None:
    with pytest.raises(click.UsageError) as caught:
        normalized(["run", "--register=s3cret"], OPTIONS)
    assert caught.value.format_message() == "--register must be true or false"


def test_a_flag_at_the_end_that_lacks_its_value_is_left_to_click() -> None:
    assert normalized(["run", "-token"], OPTIONS) == ["run", "--token"]
