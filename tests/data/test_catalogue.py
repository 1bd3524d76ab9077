from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distilrank.core import schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import catalogue
from distilrank.data.catalogue import Catalogue


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("plain", "plain"),
        ("  two\n\tlines\r\n", "two lines"),
        ("<p>Soft</p><p>and wide</p>", "Soft and wide"),
        ("one<br>two<br/>three", "one two three"),
        ("<ul><li>red</li><li>blue</li></ul>", "red blue"),
        ("very <b>st</b>rong", "very strong"),
        ("Black &amp; Decker &lt;18 V&gt; &#8482;", "Black & Decker <18 V>"),
        ("<script>alert(1)</script>kept<style>p{}</style>", "kept"),
        ("<!-- gone -->kept", "kept"),
        ("5 < 6 & 7 > 3", "5 < 6 & 7 > 3"),
        ("AT&T phone", "AT&T phone"),
        ("1½ in. “wide” – iPad™", '1 1/2 in. "wide" - iPad'),
        ("ＦＵＬＬ　width", "FULL width"),
        ("cafe\u0301", "café"),
        ("zero\u200bwidth", "zerowidth"),
        ("bell\x07rings", "bell rings"),
        ("<p> </p>", ""),
    ],
)
def test_clean(raw: str, expected: str) -> None:
    assert catalogue.clean(raw) == expected
    assert catalogue.clean_column(pa.array([raw, None])).to_pylist() == [expected or None, None]


@given(st.lists(st.one_of(st.none(), st.text(alphabet=st.sampled_from("ab <>/p&;™½\u00e9\x00\n")), st.text())))
def test_a_column_is_cleaned_as_its_texts_are(texts: list[str | None]) -> None:
    cleaned = catalogue.clean_column(pa.array(texts, pa.string())).to_pylist()
    assert cleaned == [catalogue.clean(text) or None if text is not None else None for text in texts]


def batch(rows: list[dict]) -> pa.RecordBatch:
    names = schemas.PRODUCTS.names
    return pa.RecordBatch.from_pylist([{name: row.get(name) for name in names} for row in rows], schemas.PRODUCTS)


def test_products_by_index_with_descriptions_from_disk(tmp_path: Path) -> None:
    rows = [
        {"product_id": f"p{number}", "title": f" title {number} ", "description": "<b>x</b>" * number or None}
        for number in range(9)
    ]
    made = Catalogue([batch(rows[:4]), batch([]), batch(rows[4:])], tmp_path, Problems())
    assert len(made) == 9 and made.missing_descriptions == 1
    taken = made.take(np.array([8, 0, 3, 8]))
    assert taken["product_id"].to_pylist() == ["p8", "p0", "p3", "p8"]
    assert taken["title"].to_pylist() == ["title 8", "title 0", "title 3", "title 8"]
    assert taken["description"].to_pylist() == ["x" * 8, None, "xxx", "x" * 8]
    assert made.texts(np.array([1])) == ["title 1"]
    bare = Catalogue(
        [batch([{"product_id": "a"}, {"product_id": "b", "brand": "x", "color": "y"}])], tmp_path, Problems()
    )
    assert bare.texts(np.array([0, 1])) == ["", "x y"]


def test_the_same_product_twice_is_one_and_another_is_refused(tmp_path: Path) -> None:
    rows = [{"product_id": "p1", "title": "lamp", "description": "a"}, {"product_id": "p0", "title": "rug"}]
    made = Catalogue([batch([*rows, rows[0], {"product_id": "p2"}])], tmp_path, Problems())
    assert made.keys.to_pylist() == ["p1", "p0", "p2"] and made.rows == 4
    assert made.take(np.array([0, 2]))["description"].to_pylist() == ["a", None]
    assert made.missing_descriptions == 2
    other = {"product_id": "p1", "title": "lamp", "description": "b"}
    with pytest.raises(InputError, match="rows 1 and 4: 'p1', product ids that describe several products"):
        Catalogue([batch([*rows, rows[0], other])], tmp_path, Problems())
    problems = Problems(collect=True)
    assert len(Catalogue([batch([*rows, rows[0], other])], tmp_path, problems)) == 2
    assert [problem.rows for problem in problems] == [1]


def test_ids_that_differ_by_leading_zeros_are_reported(tmp_path: Path) -> None:
    problems = Problems()
    made = Catalogue([batch([{"product_id": key} for key in ("007", "7", "0815", "x07", "x7")])], tmp_path, problems)
    assert len(made) == 5
    assert [(problem.rows, problem.examples, problem.fatal) for problem in problems] == [(1, ("'007'",), False)]
    assert catalogue.bare_ids(pa.array(["007", "7.0", " 7", "x07", "7.50"])).to_pylist() == [
        "7",
        "7",
        "7",
        "x07",
        "7.50",
    ]


def test_an_empty_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="catalogue: no products, expected some"):
        Catalogue([], tmp_path, Problems())
