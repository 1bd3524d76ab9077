"""The forms in which other programs write tables: read right, or refused by name."""

from __future__ import annotations

import csv
import gzip
import io
import uuid
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilrank.config import Columns, Csv, Prepare, Privacy, Tables
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import corpus, log_store, sources, sql, traffic, window
from distilrank.data.sources import reading, storage
from distilrank.data.sources.storage import LocalFile
from distilrank.data.sources.tables import SUFFIXES, LogFile
from distilrank.data.window import LogWindow
from tests.data.test_sources import CATALOGUE, JUDGEMENTS, LOG_COLUMNS, describe, events, judgements, load, products

DAY = date(2026, 3, 1)
NOON = datetime(2026, 3, 1, 12)
LOG = "query,product_id,when,rank,click,who\nred sofa,p1,2026-03-01T12:00:00Z,1,true,c1\n"


@pytest.fixture
def make(tmp_path: Path):
    """Opens a source over three files; text is CSV, a table Parquet, None what is there already."""

    def build(judged=JUDGEMENTS, catalogue=CATALOGUE, log=LOG, form: dict | None = None, **columns: str):
        paths = {name: tmp_path / f"{name}.csv" for name in ("judgements", "catalogue", "logs")}
        for path, content in zip(paths.values(), (judged, catalogue, log), strict=True):
            if isinstance(content, pa.Table):
                pq.write_table(content, path)
            elif content is not None:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        names = Columns(**{"brand": "brand", **LOG_COLUMNS, **columns})
        locations = {name: str(path) for name, path in paths.items()}
        return sources.open(
            Tables(
                source="tables",
                **locations,
                columns=names,
                csv=Csv(**form or {}),
                rating_min=0,
                rating_max=4,
                relevant_from=3,
            )
        )

    return build


def log_part(folder: Path, **columns: pa.Array) -> LogFile:
    """A Parquet log with the columns query, product_id and those given."""
    rows = len(next(iter(columns.values())))
    table = {"query": ["a"] * rows, "product_id": ["p"] * rows, **columns}
    pq.write_table(pa.table(table), folder / "log.parquet")
    return LogFile(LocalFile(folder / "log.parquet"), {name: name for name in table}, Csv())


# Times and types ----------------------------------------------------------------------------------------------------

NOON_SECONDS = 1_772_366_400
FAR = 300_000 * 365 * 86_400  # seconds: a year that neither Python nor a TIMESTAMP in microseconds has


@pytest.mark.parametrize(
    ("kind", "good", "odd"),
    [
        (pa.timestamp("us"), NOON_SECONDS * 10**6, FAR // 40 * 10**6),
        (pa.timestamp("us"), NOON_SECONDS * 10**6, -FAR // 40 * 10**6),
        (pa.timestamp("ms", tz="UTC"), NOON_SECONDS * 10**3, FAR * 10**3),
        (pa.date32(), NOON_SECONDS // 86_400, 2**31 - 1),
        (pa.date32(), NOON_SECONDS // 86_400, 0),
        (pa.int64(), NOON_SECONDS, FAR),
        (pa.float64(), NOON_SECONDS, float("inf")),
        (pa.string(), "2026-03-01", "9999-12-31T23:59:59Z"),
        (pa.string(), "2026-03-01", "0000-01-01"),
    ],
    ids=str,
)
def test_an_odd_time_is_left_out(tmp_path: Path, kind: pa.DataType, good: int | str, odd: int | str) -> None:
    part = log_part(tmp_path, timestamp=pa.array([good] * 199 + [odd], kind))
    assert part.days() == {DAY: 199, None: 1}
    problems = Problems()
    assert len(load(part, problems)) == 199
    ((line, rows, fatal),) = describe(problems)
    assert "row 200: timestamp is " in line and "from 2000 to 2100" in line and rows == 1 and not fatal


def test_an_old_kind_of_timestamp_does_not_overflow_into_another_year(tmp_path: Path) -> None:
    """Spark writes INT96; as nanoseconds in 64 bits, 2626 would be 2041."""
    times = pa.array([datetime(2626, 3, 1), NOON], pa.timestamp("us"))
    table = pa.table({"query": ["a", "a"], "product_id": ["p", "p"], "timestamp": times})
    pq.write_table(table, tmp_path / "log.parquet", use_deprecated_int96_timestamps=True)
    part = LogFile(LocalFile(tmp_path / "log.parquet"), {name: name for name in table.column_names}, Csv())
    assert part.days() == {DAY: 1, None: 1}


def test_uuids_are_text_and_lists_are_refused_before_the_run(make, tmp_path: Path) -> None:
    ids = [uuid.UUID(int=number) for number in (1, 2, 3)]
    typed = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([identifier.bytes for identifier in ids], pa.binary(16)))
    source = make(catalogue=pa.table({"product_id": typed, "title": ["a", "b", "c"], "brand": pa.nulls(3)}))
    source.check(Problems())
    assert products(source)["product_id"].to_pylist() == [str(identifier) for identifier in ids]
    nested = {"list": pa.array([["a"]]), "struct": pa.array([{"a": 1}])}
    for column in nested.values():
        source = make(catalogue=pa.table({"product_id": ["p"], "title": column, "brand": ["b"]}))
        with pytest.raises(InputError, match=r"catalogue\.csv: column 'title' is (list|struct)<.*expected text"):
            source.check(Problems())


def test_decimals_are_read_exactly(make, tmp_path: Path) -> None:
    """As floats, 15, 29 and 30 of a NUMERIC(38, 9) are no whole numbers."""
    whole = [Decimal(number) for number in (15, 29, 30, 0, 1)]
    for kind in (pa.decimal128(38, 9), pa.decimal256(76, 38)):
        numbers = pa.array(whole, kind)
        raters = pa.array([Decimal(number) for number in (15, 29, 30, 7, 1)], kind)
        ratings = pa.array([4, 1.5, 0, 2, 3]).cast(kind)
        table = pa.table({"query": list("abcde"), "product_id": numbers, "rating": ratings, "n": raters})
        judged = judgements(make(table, raters="n"))
        assert judged["product_id"].to_pylist() == ["15", "29", "30", "0", "1"]
        assert judged["rating"].to_pylist() == [4, 1.5, 0, 2, 3]
        assert judged["raters"].to_pylist() == [15, 29, 30, 7, 1]
        clicks = pa.array([Decimal(number) for number in (0, 1, 0, 1, 0)], kind)
        rows = load(
            log_part(tmp_path, position=pa.array([Decimal(n) for n in (15, 29, 30, 7, 1)], kind), clicked=clicks)
        )
        assert [row["position"] for row in rows] == [15, 29, 30, 7, 1]
        assert [row["clicked"] for row in rows] == [0, 1, 0, 1, 0]
    large = pa.table({"product_id": pa.array([Decimal(2**70)], pa.decimal128(38, 9)), "title": ["a"], "brand": ["b"]})
    assert products(make(catalogue=large))["product_id"].to_pylist() == [str(2**70)]
    broken = pa.table({"query": ["a"], "product_id": pa.array([Decimal("7.5")], pa.decimal128(38, 9)), "rating": [1]})
    with pytest.raises(InputError, match=r"row 1: product_id is 7\.5, expected an id as text, or a whole number in"):
        judgements(make(broken))


# Paths --------------------------------------------------------------------------------------------------------------


def test_the_path_of_a_project_does_not_affect_what_is_read(make, tmp_path: Path) -> None:
    folder = tmp_path / "day=2020-01-01" / 'a*[b] it\'s "quoted"'
    with log_store.connect(folder) as connection:
        read = corpus.read(
            make(), Prepare(privacy=Privacy(min_clients=1), log_cache_dir=str(folder / "store")),
            LogWindow.of_days(date(2026, 2, 1), date(2026, 3, 1), date(2026, 3, 2)),
            connection=connection, scratch=folder, problems=Problems(),
        )  # fmt: skip
        assert read.log.totals(True) == (1, 1) and read.log.totals(False) == (0, 0)


def test_files_are_no_patterns(tmp_path: Path) -> None:
    for name in ("a1.parquet", "a[0-9].parquet", "a?'.parquet"):
        pq.write_table(pa.table({"name": [name]}), tmp_path / name)
    named = sql.file_list([tmp_path / "a[0-9].parquet", tmp_path / "a?'.parquet"])
    assert duckdb.sql(f"SELECT name FROM read_parquet({named})").fetchall() == [("a[0-9].parquet",), ("a?'.parquet",)]


@pytest.mark.parametrize("name", ["what?", "back\\slash"])
def test_a_store_that_duckdb_cannot_open_is_refused(tmp_path: Path, monkeypatch, name: str) -> None:
    with pytest.raises(InputError, match="in the path of a folder for work files, which DuckDB cannot open"):
        log_store.LogStore(tmp_path / name)
    with pytest.raises(InputError, match="cannot open"), log_store.connect(tmp_path / name):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(InputError, match="cannot open"):
        log_store.check_path(Path("store"))


def test_no_message_shows_who_searched(tmp_path: Path) -> None:
    for who in (pa.array([b"\xffJane Doe"]), pa.array([b"\xffJane Doe"], pa.binary(9)), pa.array([815.5]),
                pa.array([Decimal("815.5")])):  # fmt: skip
        with pytest.raises(InputError, match="row 1: client is not shown here, expected") as caught:
            load(log_part(tmp_path, client=who))
        assert "Jane" not in str(caught.value) and "815" not in str(caught.value)


# CSV ----------------------------------------------------------------------------------------------------------------


def test_long_values_are_read_and_an_endless_one_is_named(make, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "very long, " * 20_000
    (title,) = products(make(catalogue=f'product_id,title,brand\np1,"{text}",Nuvo\n'))["title"].to_pylist()
    assert title == text
    csv.field_size_limit(1 << 10)
    try:
        with pytest.raises(
            InputError, match=r"row 1: a value of more than \d+ MiB, expected shorter values, or the end"
        ):
            products(make(catalogue=f'product_id,title,brand\np1,"{text}\n'))
    finally:
        csv.field_size_limit(reading._BLOCK_BYTES)


def test_marks_of_missing_values(make) -> None:
    catalogue = 'product_id,title,brand\np1,NULL sofa,\\N\np2,Lamp,"NULL"\np3,Rug,nan\np4,None,None\np5,Bed,Nuvo\n'
    problems = Problems()
    table = products(make(catalogue=catalogue), problems)
    assert table["brand"].to_pylist() == [None, None, "nan", "None", "Nuvo"]
    assert table["title"].to_pylist() == ["NULL sofa", "Lamp", "Rug", "None", "Bed"]
    assert [(problem.rows, problem.examples, problem.fatal) for problem in problems] == [
        (1, ("row 4: title is 'None'",), False),
        (2, ("row 3: brand is 'nan'", "row 4: brand is 'None'"), False),
    ]
    assert all("list them in data.csv.null_values" in problem.what for problem in problems)
    source = make(catalogue=catalogue, form={"null_values": ["nan"]})
    assert products(source)["brand"].to_pylist() == ["\\N", "NULL", None, "None", "Nuvo"]
    assert source.digest() != make(catalogue=catalogue).digest()
    assert source.log().settings != make(catalogue=catalogue).log().settings
    with pytest.raises(InputError, match="row 2: query is empty, expected a value in each row"):
        judgements(make("query,product_id,rating\nsofa,p1,1\nNULL,p1,1\n"))


def test_a_header_that_comes_again_is_no_row(make, tmp_path: Path) -> None:
    problems = Problems()
    assert len(products(make(catalogue=CATALOGUE + CATALOGUE.replace("p1", "p9")), problems)) == 6
    assert [(line.split("csv: ")[1], fatal) for line, _, fatal in describe(problems) if "repeated header" in line] == [
        ("row 4, left out, repeated header", False)
    ]
    assert judgements(make(JUDGEMENTS + JUDGEMENTS)).num_rows == 6
    (part,) = make(log=LOG * 3).log().parts
    assert part.days() == {DAY: 3} and len(load(part)) == 3
    marked = ("\ufeff" + CATALOGUE).encode()
    assert len(products(make(catalogue=marked + marked))) == 6, "each with a byte order mark"
    many = LOG + LOG.splitlines(keepends=True)[0] + LOG.splitlines(keepends=True)[1].replace("red sofa", "")
    with pytest.raises(InputError, match=r"logs\.csv: row 3: query is empty, 1 of 2 rows"):
        events(make(log=many))
    text = "product_id,title,brand\np1,title,brand\nproduct_id,title,Nuvo\n"
    assert len(products(make(catalogue=text))) == 2, "a row that is the header in part"
    with pytest.raises(InputError, match="row 3: rating is 'bad'"):
        judgements(make(JUDGEMENTS.splitlines()[0] + "\nsofa,p1,1\nquery,product_id,rating\nsofa,p2,bad\n"))


def rewritten(text: str, encoding: str, delimiter: str) -> bytes:
    """CSV as another program writes it."""
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\r\n").writerows(csv.reader(io.StringIO(text)))
    return out.getvalue().encode(encoding)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("encoding", "delimiter"), [("cp1252", ";"), ("utf-16", "\t"), ("utf-8-sig", ";"), ("latin-1", "|")]
)
def test_what_spreadsheets_export_is_read_when_declared(make, encoding: str, delimiter: str, packed: bool) -> None:
    texts = [text.replace("sofa", "Söfa; x") for text in (JUDGEMENTS, CATALOGUE, LOG)]
    expected = [read(make(*texts)) for read in (judgements, products, events)]
    written = [rewritten(text, encoding, delimiter).replace(b"1.5", b"1,5") for text in texts]
    if packed:
        written = [gzip.compress(content) for content in written]
    declared = encoding.removesuffix("-sig")
    source = make(*written, form={"delimiter": delimiter, "encoding": declared, "decimal": ","})
    source.check(Problems())
    if encoding != "utf-16":  # whose bytes the replacement does not find
        assert [read(source) for read in (judgements, products, events)] == expected
    else:
        assert [read(source) for read in (products, events)] == expected[1:]


@pytest.mark.parametrize(
    ("catalogue", "message"),
    [
        (rewritten(CATALOGUE, "utf-8", ";"), r"missing column 'brand'; it has .*set data\.csv\.delimiter to ';'"),
        (rewritten(CATALOGUE, "utf-8", "\t"), r"missing column 'brand'; it has .*set data\.csv\.delimiter to '\\t'"),
        ("product_id,title,brand\np1,Söfa,\n".encode("cp1252"), r"title is other bytes, expected UTF-8 text \("),
        ("product_id,title,bränd\np1,a,b\n".encode("cp1252"), r"missing column 'brand'.*not in utf-8: set data\.csv"),
        (rewritten(CATALOGUE, "utf-16", "\t"), r"is UTF-16 text, expected CSV in .*; set data\.csv\.encoding"),
        (b"SQLite format 3\0" + bytes(99), r"is an SQLite database, expected CSV in UTF-8 or Parquet$"),
        (b"ORC\x0a\x03" + bytes(99), r"is ORC, expected"),
        (gzip.compress(b"PK\x03\x04" + bytes(99), mtime=0), r"is a zip archive or a spreadsheet in gzip, expected"),
        (gzip.compress(gzip.compress(CATALOGUE.encode(), mtime=0), mtime=0), r"is compressed twice in gzip, expected"),
        (b"\x89model\x00\x01\xfe" + bytes(99), r"is a binary file, expected CSV in UTF-8 or Parquet$"),
        (",".join(f"column {number}" for number in range(999)), r"it has column 0, .{400,600}\.\.\. \(999 columns\)$"),
    ],
)  # fmt: skip
def test_other_forms_are_named(make, catalogue: str | bytes, message: str) -> None:
    source = make(catalogue=catalogue)
    with pytest.raises(InputError, match=message) as caught:
        source.check(Problems())
        products(source)
    assert str(caught.value).isprintable()


def test_settings_of_csv_are_checked() -> None:
    assert Csv(encoding="Windows-1252").encoding == "cp1252"
    for wrong in (
        {"encoding": "excel"},
        {"encoding": "base64"},
        {"delimiter": '"'},
        {"delimiter": ";;"},
        {"delimiter": "a"},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}"):
            Csv(**wrong)


# Folders ------------------------------------------------------------------------------------------------------------


def names(reference: Path, problems: Problems | None = None) -> list[str]:
    return [
        Path(file.name).relative_to(reference).as_posix() for file in storage.files(str(reference), SUFFIXES, problems)
    ]


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for file in (root / "b" / "1.csv", elsewhere / "2.csv", elsewhere / ".hidden" / "3.csv", tmp_path / "4.csv"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(LOG)
    (root / "a").symlink_to(elsewhere)
    (root / "4.csv").symlink_to(tmp_path / "4.csv")
    (elsewhere / "round").symlink_to(root)  # a folder within itself
    (root / "latest").symlink_to(root / "b")  # a second way to the same file
    problems = Problems()
    assert names(root, problems) == ["4.csv", "a/2.csv", "b/1.csv"]
    storage.files(str(root), SUFFIXES, problems)
    assert describe(problems) == [(f"{root}: latest/1.csv, left out, links to other files of the folder", 1, False)], (
        "told once, however often it is listed"
    )
    (root / "gone.csv").symlink_to(tmp_path / "nothing.csv")
    with pytest.raises(InputError, match=r"gone\.csv: no such file"):
        storage.files(str(root), SUFFIXES)[-1].key()


@pytest.mark.parametrize(
    ("kind", "mark"),
    [
        ("a Delta Lake table", "_delta_log/00000000000000000000.json"),
        ("an Iceberg table", "metadata/00001-c0ffee.metadata.json"),
        ("a Hudi table", ".hoodie/hoodie.properties"),
    ],
)
def test_tables_with_a_log_of_their_own_are_refused(tmp_path: Path, kind: str, mark: str) -> None:
    part = tmp_path / "tables" / "log" / "data" / "dt=2026-03-01"
    part.mkdir(parents=True)
    (part / "0.csv").write_text(LOG)
    assert len(storage.files(str(tmp_path), SUFFIXES)) == 1
    path = tmp_path / "tables" / "log" / mark
    path.parent.mkdir()
    path.touch()
    # The table, a folder of tables, and a part of one.
    for reference in (tmp_path / "tables" / "log", tmp_path, part, part / "0.csv"):
        with pytest.raises(InputError, match=f"holds {kind} .*{path.parent.name}.* deleted or replaced.*export"):
            storage.files(str(reference), SUFFIXES)


def test_one_table_in_two_formats_is_noted(tmp_path: Path) -> None:
    for name in ("d1.csv", "d1.parquet", "d2.csv", "d2.CSV.gz", "d3.csv", "x/d3.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    problems = Problems()
    assert len(names(tmp_path, problems)) == 6
    ((problem),) = problems
    assert not problem.fatal and sorted(problem.examples) == ["d1.csv beside d1.parquet", "d2.CSV.gz beside d2.csv"]


def test_other_files_in_the_folder_of_a_log_are_reported_in_a_run(make, tmp_path: Path) -> None:
    source = make(log=None)
    (tmp_path / "logs.csv").mkdir()
    (tmp_path / "logs.csv" / "1.csv").write_text(LOG)
    (tmp_path / "logs.csv" / "notes.txt").touch()
    problems = Problems()
    source.check(problems)
    (log_problem,) = source.log().problems
    problems.extend(source.log().problems, once=True)
    assert [problem.rows for problem in problems] == [1] and "notes.txt" in log_problem.examples
    with log_store.connect(tmp_path / "work") as connection:
        run_problems = Problems()
        days = LogWindow.of_days(date(2026, 2, 1), date(2026, 3, 1), date(2026, 3, 2))
        privacy = Prepare(privacy=Privacy(min_clients=1))
        corpus.read(source, privacy, days, connection=connection, scratch=tmp_path / "work", problems=run_problems)
    assert log_problem in list(run_problems)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "s3://bucket/logs",
            r"; s3:// is not supported, expected a local path or gs://BUCKET/PREFIX: copy or mount it$",
        ),
        ("https://shop.example/log.csv", "; https:// is not supported, expected"),
        ("~/logs", r"; ~ is not expanded, expected /.+/logs$"),
        ("$HOME/logs", "; variables are not expanded"),
        ("logs/2026-*/x.csv", "; patterns are not expanded, expected a file, or a folder: logs$"),
        ("*.csv", r"; patterns are not expanded, expected a file, or a folder: \.$"),
        ("logs/today.csv", "no such file or folder$"),
    ],
)
def test_paths_of_other_programs_are_refused_with_what_is_expected(
    tmp_path: Path, monkeypatch, reference: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/jo")
    with pytest.raises(InputError, match=message):
        storage.files(reference, SUFFIXES)
    if not message.startswith("no such"):
        with pytest.raises(InputError, match=message):
            reading.File(Path(reference), {}).names()
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "[1]*.csv").write_text(LOG)
    assert len(storage.files("~/[1]*.csv", SUFFIXES)) == 1


# What a refusal blames ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "red sofa,p1,2026-03-01T12:00:00Z,1,true,\n",
            r"no impressions in the training window, expected some; left out: rows without a client: not counted for "
            r"prepare\.privacy\.min_clients \(3 rows\); impressions of queries with fewer than 2 clients \(3 rows\)$",
        ),
        (
            "red sofa,p7,2026-03-01T12:00:00Z,1,true,c{}\n",
            r"no impressions in the training window, .*; left out: impressions of products that are not in the "
            r"catalogue \(3 rows\)$",
        ),
        (
            "jo@shop.example,p1,2026-03-01T12:00:00Z,1,true,c{}\n",
            r"no impressions among its 3 rows, expected some; left out: rows whose query is blank or consists of "
            r"personal data only \(3 rows\)$",
        ),
        ("red sofa,p1,2025-03-01T12:00:00Z,1,true,c{}\n", "no impressions in the training window, .*; see `window`"),
    ],
    ids=["clients", "products", "scrubbed", "dates"],
)  # fmt: skip
def test_a_run_without_impressions_reports_what_became_of_them(make, tmp_path: Path, row: str, message: str) -> None:
    source = make(log=LOG.splitlines(keepends=True)[0] + "".join(row.format(number) for number in range(3)))
    days = LogWindow.of_days(date(2026, 2, 1), date(2026, 3, 2), date(2026, 3, 3))
    settings = Prepare(privacy=Privacy(min_clients=2))
    with log_store.connect(tmp_path) as connection, pytest.raises(InputError, match=f"log: {message}"):
        traffic.sample(
            corpus.read(source, settings, days, connection=connection, scratch=tmp_path, problems=Problems()),
            settings,
        )


def test_a_log_whose_times_cannot_be_read_shows_one(make, tmp_path: Path) -> None:
    log = make(log=LOG.replace("2026-03-01T12:00:00Z", "01.03.2026")).log()
    with pytest.raises(
        InputError, match=r"none of its 1 files has a row with a time.*row 1: when is '01\.03\.2026', left"
    ):
        window.count_rows_by_day(log_store.LogStore(tmp_path / "store"), log)
