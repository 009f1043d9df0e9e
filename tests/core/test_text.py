import json

from hypothesis import given, strategies as st

from meshgate.core.text import ascii_json, counted, printable


def test_one_thing_is_no_plural() -> None:
    assert [counted(number, "stream") for number in (0, 1, 2)] == ["0 streams", "1 stream", "2 streams"]


def test_what_is_not_printable_is_escaped() -> None:
    assert printable("a\n\x1b[2J\x00\x7f\x9b\u202e\u2028\ud800") == r"a\n\x1b[2J\x00\x7f\x9b\u202e\u2028\ud800"


def test_plain_text_stays() -> None:
    assert printable("Zürich 東京 😀 a=b\\n") == "Zürich 東京 😀 a=b\\n"


@given(st.text(st.characters()))
def test_nothing_unprintable_is_left(text: str) -> None:
    assert printable(text).isprintable()


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10))
def test_json_in_ascii_says_the_same_and_nothing_in_it_moves_a_cursor(value: object) -> None:
    for text in (json.dumps(value, ensure_ascii=False), json.dumps(value, indent=2)):
        shown = ascii_json(text)
        assert shown.isascii()
        assert shown.replace("\n", "").isprintable()
        assert json.loads(shown) == value
