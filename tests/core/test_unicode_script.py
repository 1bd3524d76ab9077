"""The dominant script of a text."""

from __future__ import annotations

import pytest

from distilrank.core import unicode_script


@pytest.mark.parametrize(
    ("text", "script"),
    [("red sofa 3", "latin"), ("Ёлка new", "cyrillic"), ("冷蔵庫", "han"), ("3 1/2", "none"), ("ＡＢ 冷", "latin")],
)
def test_the_script_is_that_of_most_letters(text: str, script: str) -> None:
    assert unicode_script.dominant(text) == script
