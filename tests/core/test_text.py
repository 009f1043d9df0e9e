from hypothesis import given, strategies as st

from meshgate.core.text import printable


def test_what_is_not_printable_is_escaped() -> None:
    assert printable("a\n\x1b[2J\x00\x7f\x9b\u202e\u2028\ud800") == r"a\n\x1b[2J\x00\x7f\x9b\u202e\u2028\ud800"


def test_plain_text_stays() -> None:
    assert printable("Zürich 東京 😀 a=b\\n") == "Zürich 東京 😀 a=b\\n"


@given(st.text(st.characters()))
def test_nothing_unprintable_is_left(text: str) -> None:
    assert printable(text).isprintable()
