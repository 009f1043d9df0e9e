import pytest

from meshgate.core.reasons import meaning_of


@pytest.mark.parametrize(
    ("alert", "words"),
    [
        ("unrecognized_name", "no route"),
        ("internal_error", "any endpoint"),
        ("internal_error", "all the connections it may have"),
        ("bad_certificate", "intention"),
        ("unknown_ca", "CA"),
        ("certificate_expired", "clocks"),
    ],
)
def test_an_alert_is_explained(alert: str, words: str) -> None:
    assert words in meaning_of(alert)


def test_an_alert_that_nobody_has_heard_of_is_explained_as_well() -> None:
    assert "destination" in meaning_of("number_250")
