"""Which characters names may have, and how untrusted text is shown."""

import json

import pytest

from weave.protocol.text import hidden_in, is_model_id, json_line, visible


@pytest.mark.parametrize("text", ["shapes", "a", "sd-1.5_x", "0", "a" * 64])
def test_valid_model_ids(text: str) -> None:
    assert is_model_id(text)


@pytest.mark.parametrize("text", ["", "A", "-rf", ".", "a b", "a\n", "$(id)", "`id`", "a/b", "é", "a" * 65, "a\x1b[m"])
def test_invalid_model_ids(text: str) -> None:
    assert not is_model_id(text)


def test_unprintable_characters_are_shown_as_escapes() -> None:
    hostile = "a\x1b[31m\n\r\x07\x7f\x9b1m\u202e\u2028\u200e\udce9\U000e0041"
    shown = r"a\x1b[31m\n\r\x07\x7f\x9b1m\u202e\u2028\u200e\udce9\U000e0041"
    assert visible(hostile) == shown
    assert visible("plain, é, 日本, [link]") == "plain, é, 日本, [link]"


def test_printable_json_decodes_to_the_same_value() -> None:
    value = {"a": "\x1b[31m\x7f\x9b1m\u202e\U000e0041 é", "b": ["\udce9", 1, None]}
    line = json_line(value).decode()
    assert line.isprintable() and "é" in line
    assert json.loads(line) == value
    assert json_line({"a": 1}) == b'{"a":1}'


def test_a_bad_title_error_names_its_first_bad_character() -> None:
    assert hidden_in("fine é") is None
    assert [hidden_in(f"a{c}b") for c in "\x1b\x9b\u202e\ufeff"] == ["U+001B", "U+009B", "U+202E", "U+FEFF"]
