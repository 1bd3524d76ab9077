from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from distilrank import config, records, sources
from distilrank.config import Columns, HomeDepot, Tables
from distilrank.errors import InputError

ROOT = Path(__file__).parents[1]
HOME_DEPOT = ROOT / config.load(ROOT / "configs" / "home-depot.yaml").data.path

JUDGEMENTS = "query,product_id,rating\nred sofa,p1,4\nred sofa,p2,1.5\nlamp,p3,0\n"
CATALOGUE = 'product_id,title,brand\np1,Red sofa,Nuvo\np2,"Cover, for a ""3-seat"" sofa",\np3,NA,null\n'
LOG = (
    "query,product_id,when,rank,click\n"
    "red sofa,p1,2026-03-01T10:00:00Z,1,true\n"
    "Red Sofa,p2,2026-03-02 11:00:00,2,0\n"
    "lamp,p3,2026-03-03T00:00:00.123456789+02:00,,\n"
)
LOG_COLUMNS = {"timestamp": "when", "position": "rank", "clicked": "click"}


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


def test_csv_gzip_and_parquet_give_the_same_tables(shop, tmp_path: Path) -> None:
    plain = shop()
    expected = plain.judgements(), plain.products(), plain.impressions()
    for name in ("judgements", "catalogue", "logs"):
        path = tmp_path / f"{name}.csv"
        path.write_bytes(gzip.compress(path.read_bytes()))  # the name still says .csv
    zipped = shop(None, None, None)
    assert expected == (zipped.judgements(), zipped.products(), zipped.impressions())

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
            "product_id": ["p1", "p2", "p3"],
            "when": pa.array(times, pa.timestamp("ns")),
            "rank": pa.array([1.0, 2.0, None]),
            "click": [True, False, None],
        },
    }
    for name, columns in typed.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.csv")
    parquet = shop(None, None, None)
    assert expected == (parquet.judgements(), parquet.products(), parquet.impressions())


def test_values_survive_as_they_stand(shop) -> None:
    catalogue = 'product_id,title,brand\n01,NA,"line\nbreak"\n1,  nan ,None\n"a,b",Größe 38⅔ “é”,\n'
    table = shop("query,product_id,rating\nnull,01,2\n", catalogue).products()
    assert table.column("product_id").to_pylist() == ["01", "1", "a,b"]
    assert table.column("title").to_pylist() == ["NA", "  nan ", "Größe 38⅔ “é”"]
    assert table.column("brand").to_pylist() == ["line\nbreak", "None", None]
    assert table.schema == records.PRODUCTS


def test_impressions_are_in_utc_and_blank_is_unknown(shop) -> None:
    source = shop()
    rows = source.impressions().to_pylist()
    assert [row["timestamp"] for row in rows] == [
        datetime(2026, 3, 1, 10, tzinfo=UTC),
        datetime(2026, 3, 2, 11, tzinfo=UTC),
        datetime(2026, 3, 2, 22, 0, 0, 123456, tzinfo=UTC),
    ]
    assert [row["position"] for row in rows] == [1, 2, None]
    assert [row["clicked"] for row in rows] == [True, False, None]
    assert source.times().to_pylist() == [row["timestamp"] for row in rows]


def test_times_reads_the_timestamps_alone(shop) -> None:
    source = shop(log=LOG.replace(",2,0", ",second,0"))
    assert len(source.times()) == 3
    with pytest.raises(InputError, match="rank is 'second'"):
        source.impressions()


def test_without_a_timestamp_column_there_are_no_times(shop) -> None:
    source = shop(timestamp="")
    assert source.times() is None
    assert source.impressions().column("timestamp").null_count == 3


def test_raters_default_to_one(shop) -> None:
    assert shop().judgements().column("raters").to_pylist() == [1, 1, 1]
    judged = "query,product_id,rating,n\nred sofa,p1,4,3\nred sofa,p2,1.5,3.0\nlamp,p3,0,5\n"
    assert shop(judged, raters="n").judgements().column("raters").to_pylist() == [3, 3, 5]
    with pytest.raises(InputError, match="row 3: n is '0', expected a whole number from 1"):
        shop(judged.replace("0,5", "0,0"), raters="n").judgements()


ROW = "query,product_id,rating\n"


@pytest.mark.parametrize(
    ("judgements", "message"),
    [
        (ROW + "sofa,p1,5\n", r"row 1: rating is '5', expected a number from 0 to 4"),
        (ROW + "sofa,p1,2\nsofa,p2,-1\n", r"row 2: rating is '-1', expected a number from 0 to 4"),
        (ROW + "sofa,p1,2\nsofa,p2,nan\n", r"row 2: rating is 'nan'"),
        (ROW + "sofa,p1,2\nsofa,p2,good\nsofa,p3,bad\n", r"row 2: rating is 'good'"),
        (ROW + "sofa,p1,2\nsofa,p2,\n", r"row 2: rating is empty"),
        (ROW + "sofa,p1,2\n  ,p2,1\n", r"row 2: query is empty, expected a value in each row"),
        (ROW + "sofa,p1,2\n\u200b,p2,1\n", r"row 2: query is '\\u200b', expected a query"),
        (ROW + "sofa,,2\n", r"row 1: product_id is empty"),
        (ROW + "sofa,p1,2\nlamp,p9,1\n", r"row 2: product_id is 'p9', expected a product of .*catalogue.csv"),
        (
            ROW + "sofa,p1,2\nlamp,p1,1\nsofa,p1,3.5\nsofa,p1,2\n",
            r"rows 1 and 3 rate product 'p1' for query 'sofa' 2 and 3.5",
        ),
        ("query,rating\nsofa,1\n", r"missing column 'product_id'; it has query, rating"),
        ("query,product_id,rating,rating\nsofa,p1,1,2\n", r"column 'rating' is there 2 times"),
        ("", r"empty, expected a header with query, product_id, rating"),
        (ROW, r"no rows after the header"),
        (ROW + "sofa,p1,2\nsofa,p2\n", r"row 2: not readable .*Expected 3 columns, got 2"),
        (ROW + "sofa,p1,2\nsofa,p2,1,0\n", r"row 2: not readable .*Expected 3 columns, got 4"),
        ((ROW + "sofa,p1,2\n").encode() + b"caf\xe9,p2,1\n", r"row 2: not readable .*UTF8"),
        (gzip.compress(ROW.encode() + b"sofa,p1,2\n" * 9999)[:-40], r"not readable"),
        (b"PAR1 is how Parquet starts", r"not readable"),
    ],
)
def test_bad_judgements_name_file_and_row(shop, judgements: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=r"judgements\.csv: " + message) as caught:
        shop(judgements).judgements()
    assert "\n" not in str(caught.value)


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
        shop(catalogue=catalogue, brand="").products()


def test_a_quote_within_a_value_is_a_quote(shop) -> None:
    table = shop(catalogue='product_id,title\np1,6" pipe\np2,8" pipe\n', brand="").products()
    assert table.column("title").to_pylist() == ['6" pipe', '8" pipe']


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2026-03-02 11:00:00", "yesterday", "row 2: when is 'yesterday', expected an ISO 8601 time"),
        ("2026-03-02 11:00:00", "2026-02-30", "row 2: when is '2026-02-30'"),
        ("2026-03-02 11:00:00", "", "row 2: when is empty"),
        (",2,0", ",0,0", "row 2: rank is '0', expected a whole number from 1"),
        (",2,0", ",1.5,0", "row 2: rank is '1.5'"),
        (",2,0", ",2,maybe", "row 2: click is 'maybe', expected true, false, 1 or 0"),
        ("Red Sofa", "", "row 2: query is empty"),
    ],
)
def test_bad_impressions_name_file_and_row(shop, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"logs\.csv: {message}"):
        shop(log=LOG.replace(old, new)).impressions()


def test_one_product_has_one_description(shop) -> None:
    twice = CATALOGUE + "p1,Red sofa,Nuvo\n"
    assert shop(catalogue=twice).products() == shop().products()
    with pytest.raises(InputError, match=r"catalogue\.csv: rows 1, 4 describe product 'p1' differently"):
        shop(catalogue=CATALOGUE + "p1,Blue sofa,Nuvo\n").products()


def test_identical_judgements_are_no_conflict(shop) -> None:
    assert shop(JUDGEMENTS + "red sofa,p1,4.0\n").judgements().num_rows == 4


def test_check_names_what_is_missing_without_reading_rows(shop, tmp_path: Path) -> None:
    shop(JUDGEMENTS + "sofa,p1,99\n").check()
    with pytest.raises(InputError, match=r"logs\.csv: missing column 'rank'"):
        shop(log="query,product_id,when,click\n").check()
    source = shop()
    (tmp_path / "catalogue.csv").unlink()
    with pytest.raises(InputError, match=r"catalogue\.csv: no such file"):
        source.check()
    (tmp_path / "catalogue.csv").mkdir()
    with pytest.raises(InputError, match=r"catalogue\.csv: is a folder"):
        source.check()


def test_digest_follows_content(shop) -> None:
    first = shop()
    assert first.digest() == shop().digest()
    assert first.digest() != shop(log=LOG + "lamp,p1,2026-03-04T00:00:00Z,1,0\n").digest()
    assert first.digest() != shop(position="").digest()


# Home Depot -------------------------------------------------------------------------------------------------------

HEADER = "id,product_uid,product_title,search_term,relevance\n"
PAIRS = HEADER + "2,100,Angle 90° bracket,angle,3.0\n3,100,Angle bracket,metal plate,2.33\n9,101,Shower,angle,1\n"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_home_depot_in_either_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(PAIRS.encode(encoding))
    source = sources.open(HomeDepot(source="home_depot", path=str(path)))
    source.check()
    assert source.impressions() is None and source.times() is None
    judged = source.judgements()
    assert judged.schema == records.JUDGEMENTS
    assert judged.column("rating").to_pylist() == [3.0, 2.33, 1.0]
    assert judged.column("raters").to_pylist() == [3, 3, 3]
    products = source.products()
    assert products.schema == records.PRODUCTS
    assert products.column("title").to_pylist() == ["Angle 90° bracket", "Shower"]  # the first wording stands


def test_home_depot_keeps_queries_by_hash(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    rows = [f"{number},{100 + number},title,query {number % 20},2\n" for number in range(60)]
    path.write_text(HEADER + "".join(rows))

    def kept(queries: int) -> set[str]:
        source = sources.open(HomeDepot(source="home_depot", path=str(path), queries=queries))
        assert source.products().num_rows == 60
        return set(source.judgements().column("query").to_pylist())

    assert len(kept(5)) == 5 and len(kept(0)) == 20
    assert kept(5) < kept(9)


def test_home_depot_rejects_another_scale(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(PAIRS + "10,102,Tap,tap,0\n")
    with pytest.raises(InputError, match=r"train\.csv: row 4: relevance is '0', expected a number from 1 to 3"):
        sources.open(HomeDepot(source="home_depot", path=str(path))).judgements()


@pytest.mark.skipif(not HOME_DEPOT.exists(), reason=f"needs the Home Depot data at {HOME_DEPOT}")
def test_home_depot_for_real() -> None:
    source = sources.open(HomeDepot(source="home_depot", path=str(HOME_DEPOT)))
    judged, products = source.judgements(), source.products()
    assert (judged.num_rows, products.num_rows) == (51_640, 40_932)
    assert len(judged.column("query").unique()) == 8_237
    assert set(judged.column("product_id").to_pylist()) == set(products.column("product_id").to_pylist())
