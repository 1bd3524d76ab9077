from __future__ import annotations

import ast
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

import distilrank
from distilrank.config import Privacy
from distilrank.core import artifacts, schemas
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data import log_store
from distilrank.data.log_aggregates import PartAggregates
from distilrank.data.sources.base import Log

DAY = datetime(2026, 11, 1, 10)


class Rows:
    """A part of a log, from rows of (time, search, query, product_id, position, shown, clicked, client)."""

    def __init__(self, name: str, rows: list[tuple]) -> None:
        self.name, self.rows, self.loads = name, rows, 0

    def key(self) -> str:
        return artifacts.digest_json([list(map(str, row)) for row in self.rows])

    def digest(self) -> str:
        return self.key()

    def days(self) -> dict[date | None, int]:
        return dict(Counter(row[0].date() if row[0] else None for row in self.rows))

    def load(self, connection: duckdb.DuckDBPyConnection, problems: Problems) -> None:
        self.loads += 1
        rows = [(*row, None)[: len(schemas.EVENTS)] for row in self.rows]  # with or without an id
        columns = [pa.array(list(column), field.type) for column, field in zip(zip(*rows), schemas.EVENTS)]
        connection.register("rows", pa.table(columns, schema=schemas.EVENTS))
        connection.execute("INSERT INTO events SELECT * FROM rows")
        connection.unregister("rows")


def shown(query: str, product: str, client: str, day: int = 0, rank: int = 1, click: int = 0) -> tuple:
    return DAY + timedelta(days=day), None, query, product, rank, 1, click, client


def log(*parts: Rows) -> Log:
    return Log(parts, timed=True, clients=True, settings={})


def ingest(
    folder: Path, *parts: Rows, start: str = "2026-10-01", end: str = "2026-12-01", **privacy
) -> tuple[list[PartAggregates], Problems]:
    problems = Problems()
    return log_store.LogStore(folder).ingest(log(*parts), Privacy(**privacy), start, end, problems), problems


def content(parts: list[PartAggregates], table: str, start: str = "", end: str = "") -> list[dict]:
    files = [path for part in parts for path in part.files(table, start, end)]
    if not files:
        return []
    reading = f"read_parquet({files}, hive_partitioning = true, hive_types = {{'day': VARCHAR}})"
    with duckdb.connect() as connection:
        return connection.sql(f"SELECT * FROM {reading} ORDER BY ALL").to_arrow_table().to_pylist()


def text_of(folder: Path) -> bytes:
    """Every byte of a store, its Parquet tables as text."""
    stored_bytes = b""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.suffix == ".parquet":
            stored_bytes += str(duckdb.sql(f"FROM '{path}'").fetchall()).encode()
        else:
            stored_bytes += path.read_bytes()
    return stored_bytes


def test_a_part_becomes_day_aggregates(tmp_path: Path) -> None:
    rows = [
        shown("Red  Sofa", "p1", "anna", click=1),
        shown("red sofa", "p1", "bob"),
        shown("red sofa", "p2", "bob", 1, 4),
    ]
    parts, problems = ingest(tmp_path, Rows("a", rows))
    query = "085966c4bdab14f6"
    assert content(parts, "pairs") == [
        {"query_id": query, "product_id": "p1", "position": 1, "shown": 2, "clicked": 1, "day": "2026-11-01"},
        {"query_id": query, "product_id": "p2", "position": 4, "shown": 1, "clicked": 0, "day": "2026-11-02"},
    ]
    typed = {(row["text"], row["day"]): row["typed"] for row in content(parts, "queries")}
    assert typed == {("Red Sofa", "2026-11-01"): 1, ("red sofa", "2026-11-01"): 1, ("red sofa", "2026-11-02"): 1}
    clients = content(parts, "clients")
    assert sorted(row["day"] for row in clients) == ["2026-11-01", "2026-11-01", "2026-11-02"]
    assert len({row["client"] for row in clients}) == 2, "a client's hash is the same on every day"
    assert not len(problems)
    assert content(parts, "pairs", "2026-11-02", "2026-11-03")[0]["product_id"] == "p2"


def test_no_id_and_no_personal_data_reaches_the_store(tmp_path: Path) -> None:
    rows = [
        (DAY, "search-77", "sofa for bob@example.com", None, None, 0, 0, "client-55"),
        (DAY, "search-77", None, "p1", 1, 1, 0, "client-55"),
        (DAY, None, "4111 1111 1111 1111", "p1", 1, 1, 0, "client-66"),
    ]
    parts, problems = ingest(tmp_path, Rows("a", rows))
    everything = text_of(tmp_path)
    assert b"sofa for" in everything
    for secret in (b"client-55", b"search-77", b"example.com", b"4111"):
        assert secret not in everything
    assert parts[0].facts["scrubbed"] == {"card": {"rows": 1, "queries": 1}, "email": {"rows": 1, "queries": 1}}
    assert [(problem.rows, problem.what) for problem in problems] == [
        (1, "rows whose query is blank or consists of personal data only")
    ]
    # Another store has another key, so that hashes of two shops, or of one at two times, cannot be joined.
    other, _ = ingest(tmp_path / "other", Rows("a", rows))
    assert content(other, "clients") != content(parts, "clients")
    assert (tmp_path / "salt").stat().st_mode & 0o777 == 0o600


KEY = "0123456789abcdef" * 2


def test_hashes_are_keyed_by_a_secret_that_the_store_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(log_store.CLIENT_KEY, f"{KEY}\n")
    rows = [(DAY, "search-77", "sofa", None, None, 0, 0, "anna"), shown("sofa", "p1", "anna")]
    parts, _ = ingest(tmp_path, Rows("a", rows))

    def number(digest: str, characters: int) -> int:
        return int(digest[:characters], 16)

    # RFC 2104 by another implementation; the key is hashed to 32 bytes first.
    key = hashlib.sha256(KEY.encode()).digest()
    query = content(parts, "queries")[0]["query_id"]
    person = hmac.new(key, b"clientanna", "sha256").hexdigest()
    (client,) = content(parts, "clients")
    assert client["client"] == number(hashlib.sha256(f"{person}{query}".encode()).hexdigest(), 16)
    (pair,) = content(parts, "pair_clients")
    assert pair["client"] == number(hashlib.sha256(f"{person}{query}p1".encode()).hexdigest(), 8)
    search = duckdb.sql(f"SELECT search FROM '{parts[0].folder}/searches.parquet'").fetchall()
    assert search == [(number(hmac.new(key, b"searchsearch-77", "sha256").hexdigest(), 16),)]
    assert not (tmp_path / "salt").exists() and KEY.encode() not in text_of(tmp_path)


@pytest.mark.parametrize("damage", ["lost", "empty", "other"])
def test_a_lost_key_is_refused_and_not_made_again(tmp_path: Path, damage: str) -> None:
    ingest(tmp_path, Rows("a", [shown("sofa", "p1", "c")]))
    key = (tmp_path / "salt").read_bytes()
    if damage == "lost":
        (tmp_path / "salt").unlink()
    else:
        (tmp_path / "salt").write_text({"empty": "\n", "other": KEY}[damage])
    messages = {
        "lost": "missing, expected the key",
        "empty": "a key of 0 characters, expected 32",
        "other": "not the key",
    }
    with pytest.raises(InputError, match=rf"salt: {messages[damage]}.* delete .*, which is made again from the log"):
        log_store.LogStore(tmp_path)
    (tmp_path / "salt").write_bytes(key)
    log_store.LogStore(tmp_path)
    (tmp_path / "key.json").unlink()
    (tmp_path / "salt").unlink()
    with pytest.raises(InputError, match="missing"):  # there are parts, whatever else is lost
        log_store.LogStore(tmp_path)


def test_a_secret_that_is_lost_changed_or_short_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(log_store.CLIENT_KEY, KEY)
    log_store.LogStore(tmp_path)
    for value, message in ((KEY[::-1], "not the key"), ("", "0 characters"), (KEY[:31], "31 characters.*openssl")):
        monkeypatch.setenv(log_store.CLIENT_KEY, value)
        with pytest.raises(InputError, match=f"DISTILRANK_CLIENT_KEY: .*{message}"):
            log_store.LogStore(tmp_path)
    monkeypatch.delenv(log_store.CLIENT_KEY)
    with pytest.raises(InputError, match="set DISTILRANK_CLIENT_KEY if the key came from there"):
        log_store.LogStore(tmp_path)
    assert not (tmp_path / "salt").exists()


def test_only_enough_clients_of_a_pair_are_stored_to_prove_the_bound(tmp_path: Path) -> None:
    viewers = [shown("sofa", "p1", f"c{number}") for number in range(30)]
    clickers = [shown("sofa", "p1", f"k{number}", click=1) for number in range(30)]
    parts, _ = ingest(tmp_path, Rows("a", [*viewers, *clickers, shown("sofa", "p2", "c1")]), min_clients=4)
    pairs = content(parts, "pair_clients")
    assert Counter(row["product_id"] for row in pairs)["p2"] == 1
    assert 4 <= sum(row["product_id"] == "p1" for row in pairs) <= 8
    assert sum(row["clicked"] for row in pairs) == 4
    assert len({row["client"] for row in pairs}) == len(pairs), "nobody's products can be put together"


def test_what_is_no_query_is_left_out_by_reason(tmp_path: Path) -> None:
    rows = [
        *(shown(query, "p1", "c") for query in ("sofa", " ", "\u200b", "x" * 501, "y" * 500)),
        (DAY, "s1", "z" * 600, None, None, 0, 0, "c"),
        (DAY, "s1", None, "p2", 1, 1, 0, "c"),
        (DAY, "s2", None, "p2", 1, 1, 0, "c"),
    ]
    parts, problems = ingest(tmp_path, Rows("a", rows))
    assert {problem.what: problem.rows for problem in problems} == {
        "rows of a search without a query record": 1,
        "rows whose query is blank or consists of personal data only": 2,
        "rows whose query has more than 500 characters": 2,
    }
    assert sorted(row["text"] for row in content(parts, "queries")) == ["sofa", "y" * 500]


def test_scrubbing_can_be_switched_off(tmp_path: Path) -> None:
    parts, _ = ingest(tmp_path, Rows("a", [shown("sofa bob@example.com", "p1", "c")]), scrub=False)
    assert content(parts, "queries")[0]["text"] == "sofa bob@example.com"


def test_only_enough_clients_are_stored_to_prove_the_bound(tmp_path: Path) -> None:
    rows = [shown("sofa", "p1", f"c{number}", day) for day in (0, 1) for number in range(50)]
    parts, _ = ingest(tmp_path, Rows("a", rows), min_clients=4)
    assert Counter(row["day"] for row in content(parts, "clients")) == {"2026-11-01": 4, "2026-11-02": 4}


def test_a_new_day_reads_only_its_own_part(tmp_path: Path) -> None:
    first = Rows("1", [shown("sofa", "p1", "c")])
    second = Rows("2", [shown("sofa", "p1", "c", day=1)])
    before, _ = ingest(tmp_path, first)
    after, _ = ingest(tmp_path, first, second)
    assert (first.loads, second.loads) == (1, 1)
    assert [part.folder for part in after][:1] == [part.folder for part in before]
    # A part outside the window is not read at all.
    late = Rows("3", [shown("sofa", "p1", "c", day=60)])
    parts, _ = ingest(tmp_path, first, second, late)
    assert len(parts) == 2 and late.loads == 0
    # What a part's rows were left out for is told again, though it is not read again.
    odd = Rows("4", [shown("bob@example.com", "p1", "c")])
    assert [len(ingest(tmp_path, odd)[1]) for _ in range(2)] == [1, 1] and odd.loads == 1


def test_another_content_or_reading_is_read_again(tmp_path: Path) -> None:
    part = Rows("a", [shown("sofa", "p1", "c")])
    ingest(tmp_path, part)
    ingest(tmp_path, part, min_clients=5)
    assert part.loads == 2
    log_store.LogStore(tmp_path).ingest(replace(log(part), settings={"click": "x"}), Privacy(), "", "", Problems())
    assert part.loads == 3
    part.rows = [shown("sofa", "p9", "c")]
    parts, _ = ingest(tmp_path, part)
    assert content(parts, "pairs")[0]["product_id"] == "p9"


def test_the_code_that_scrubs_is_complete() -> None:
    """All that normalization and scrubbing import from this package is among the files whose bytes are in the key."""
    names = {}
    for path in log_store.READING_CODE:
        parts = path.relative_to(Path(distilrank.__file__).parents[1]).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    assert "distilrank.core.normalize" in names and "distilrank.data.privacy" in names and len(names) >= 6
    for path in names.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported = [[alias.name] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [[str(node.module), f"{node.module}.{alias.name}"] for alias in node.names]
            else:
                continue
            for candidates in imported:
                ours = candidates[0].startswith("distilrank")
                assert not ours or names.keys() & set(candidates), f"{path.name} imports {candidates[-1]}"


@pytest.mark.parametrize("path", log_store.READING_CODE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_other_code_that_scrubs_reads_a_part_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    part = Rows("a", [shown("sofa", "p1", "c")])
    ingest(tmp_path, part)
    ingest(tmp_path, part)
    assert part.loads == 1
    changed = tmp_path / path.name
    changed.write_bytes(path.read_bytes() + b"# changed\n")
    others = [changed if other == path else other for other in log_store.READING_CODE]
    monkeypatch.setattr(log_store, "READING_CODE", tuple(others))
    ingest(tmp_path, part)
    assert part.loads == 2


def test_searches_are_known_across_parts_and_midnight(tmp_path: Path) -> None:
    evening = Rows("1", [(DAY, "s1", "blue lamp", None, None, 0, 0, "c")])
    morning = Rows("2", [(DAY + timedelta(days=1), "s1", None, "p1", 1, 1, 1, "c"),
                         (DAY + timedelta(days=1), "s2", None, "p2", 1, 1, 0, "c")])  # fmt: skip
    parts, problems = ingest(tmp_path, evening, morning)
    assert [row["product_id"] for row in content(parts, "pairs")] == ["p1"]
    assert [(p.where, p.rows, p.what) for p in problems] == [("2", 1, "rows of a search without a query record")]
    # The file that tells of the other search comes late: the rows that waited for it are found again.
    late = Rows("0", [(DAY, "s2", "red rug", None, None, 0, 0, "c")])
    parts, problems = ingest(tmp_path, late, evening, morning)
    assert {row["product_id"] for row in content(parts, "pairs")} == {"p1", "p2"}
    assert not len(problems) and evening.loads == 1 and morning.loads == 2
    ingest(tmp_path, late, evening, morning)
    assert morning.loads == 2


def test_clicks_and_impressions_are_counted_apart(tmp_path: Path) -> None:
    rows = [
        (DAY, None, "sofa", "p1", 3, 0, 1, "c"),
        (DAY, None, "sofa", "p2", 1, 1, 0, "c"),
        (DAY, None, "sofa", "p2", 1, 0, 1, "c"),
    ]
    parts, _ = ingest(tmp_path, Rows("a", rows))
    assert [(row["product_id"], row["shown"], row["clicked"]) for row in content(parts, "pairs")] == [
        ("p1", 0, 1),
        ("p2", 1, 1),
    ]


def test_a_log_without_times_is_one_day(tmp_path: Path) -> None:
    parts, _ = ingest(tmp_path, Rows("a", [(None, None, "sofa", "p1", None, 1, 0, None)]), start="", end="")
    assert parts[0].days == {"none": 1}
    assert content(parts, "pairs")[0]["position"] is None and content(parts, "clients") == []


SLOWLY = """
    import sys, time
    from pathlib import Path
    from distilrank.data import log_store
    from tests.data.test_log_store import Rows, ingest, shown
    aggregate = log_store.aggregate
    def slow(connection, *arguments):
        done = aggregate(connection, *arguments)
        connection.execute("CHECKPOINT")
        print("aggregated", flush=True)
        time.sleep(600)
        return done
    log_store.aggregate = slow
    ingest(Path(sys.argv[1]), Rows("a", [shown("sofa bob@example.com", "p1", "client-55")]))
"""


def test_a_killed_reading_leaves_no_half_part_and_no_raw_query(tmp_path: Path) -> None:
    root, temporary, store = Path(__file__).parents[2], tmp_path / "tmp", tmp_path / "store"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOWLY), str(store)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={
            **os.environ,
            "PYTHONPATH": f"{root}:{os.environ.get('PYTHONPATH', '')}",
            "TMPDIR": str(temporary),
        },
    )
    assert any(line == "aggregated\n" for line in process.stdout)
    raw = b"bob@example.com"
    assert any(raw in path.read_bytes() for path in temporary.rglob("*") if path.is_file()), "they are there meanwhile"
    assert not any(raw in path.read_bytes() for path in store.rglob("*") if path.is_file()), "and not beside the store"
    process.send_signal(signal.SIGKILL)
    process.wait()
    # No other run begins: what deletes them has outlived the process.
    deadline = time.monotonic() + 60
    while any(temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not list(temporary.iterdir())
    assert not list(store.glob("parts/*/part.json"))
    part = Rows("a", [shown("sofa", "p1", "c")])
    parts, _ = ingest(store, part)
    assert part.loads == 1 and len(content(parts, "pairs")) == 1
    whole, _ = ingest(tmp_path / "whole", Rows("a", part.rows))
    assert content(parts, "pairs") == content(whole, "pairs") and content(parts, "queries") == content(whole, "queries")


def test_summaries_are_remembered_until_the_part_changes(tmp_path: Path) -> None:
    class Counted(Rows):
        counted = 0

        def days(self):
            Counted.counted += 1
            return super().days()

    part = Counted("a", [shown("sofa", "p1", "c")])
    store = log_store.LogStore(tmp_path)
    assert store.summary(part, {})["days"] == {"2026-11-01": 1}
    assert log_store.LogStore(tmp_path).summary(part, {}) == store.summary(part, {})
    assert Counted.counted == 1
    part.rows = [*part.rows, shown("sofa", "p1", "c", day=1)]
    assert store.summary(part, {})["days"] == {"2026-11-01": 1, "2026-11-02": 1} and Counted.counted == 2
    assert json.loads(next((tmp_path / "files").iterdir()).read_text())["days"] == store.summary(part, {})["days"]
    assert store.digests(log(part), "2026-11-02", "2026-11-03") == [part.digest()]
    assert store.digests(log(part), "2026-12-02", "2026-12-03") == []


@pytest.mark.parametrize("ask", [["2026-11-01", "2026-11-02"], ["", ""]])
def test_a_window_is_a_choice_of_days(tmp_path: Path, ask: list[str]) -> None:
    part = Rows("a", [shown("sofa", f"p{day}", "c", day) for day in range(3)])
    parts, _ = ingest(tmp_path, part, start=ask[0], end=ask[1])
    assert [row["product_id"] for row in content(parts, "pairs", *ask)] == (["p0"] if ask[0] else ["p0", "p1", "p2"])


def test_the_same_content_twice_counts_once(tmp_path: Path) -> None:
    rows = [shown("sofa", "p1", "c")]
    parts, problems = ingest(tmp_path, Rows("a", rows), Rows("b", rows), Rows("c", [shown("sofa", "p2", "c")]))
    assert len(parts) == 2 and len(content(parts, "pairs")) == 2
    assert [(p.where, p.rows, p.what, p.fatal) for p in problems] == [
        ("b", 1, "has the same content as a: counted once", False)
    ]


def test_a_window_that_moves_on_changes_nothing_in_what_stays(tmp_path: Path) -> None:
    evening = Rows("1", [(DAY, "s1", "blue lamp", None, None, 0, 0, "c")])
    morning = Rows("2", [(DAY + timedelta(days=1), "s1", None, "p1", 1, 1, 1, "c")])
    window = {"start": "2026-11-02", "end": "2026-11-03"}
    fresh, _ = ingest(tmp_path / "fresh", evening, morning, **window)
    ingest(tmp_path / "old", evening, morning)
    old, _ = ingest(tmp_path / "old", evening, morning, **window)
    for parts in (fresh, old):
        assert [row["product_id"] for row in content(parts, "pairs", "2026-11-02", "2026-11-03")] == ["p1"]
    ingest(tmp_path / "old", morning, start="2026-11-02", end="2026-11-03")
    assert morning.loads == 2, "a part that knew more is not read again"


def test_nobodys_searches_can_be_put_together(tmp_path: Path) -> None:
    parts, _ = ingest(tmp_path, Rows("a", [shown("sofa", "p1", "u"), shown("lamp", "p1", "u")]))
    assert len({row["client"] for row in content(parts, "clients")}) == 2


def test_a_damaged_part_is_read_again(tmp_path: Path) -> None:
    part = Rows("a", [shown("sofa", "p1", "c")])
    ingest(tmp_path, part)
    next(tmp_path.glob("parts/*/pairs/day=*/*.parquet")).unlink()
    parts, _ = ingest(tmp_path, part)
    assert part.loads == 2 and len(content(parts, "pairs")) == 1
    next(tmp_path.glob("parts/*/part.json")).write_text("{}")
    parts, _ = ingest(tmp_path, part)
    assert part.loads == 3 and len(content(parts, "pairs")) == 1


def test_a_file_without_any_time_in_a_log_with_times_is_not_passed_over(tmp_path: Path) -> None:
    timeless = Rows("b", [(None, None, "sofa", "p1", 1, 1, 0, "c")])
    parts, _ = ingest(tmp_path, Rows("a", [shown("sofa", "p1", "c")]), timeless)
    assert timeless.loads == 1 and [part.days for part in parts] == [{"2026-11-01": 1}, {"none": 1}]


def test_the_first_search_of_a_reused_key_stands(tmp_path: Path) -> None:
    rows = [
        (DAY, "s1", "blue lamp", None, None, 0, 0, "c"),
        (DAY - timedelta(hours=1), "s1", "red rug", None, None, 0, 0, "c"),
        (DAY - timedelta(hours=2), "s1", " ", None, None, 0, 0, "c"),
        (DAY, "s1", None, "p1", 1, 1, 0, "c"),
    ]
    parts, _ = ingest(tmp_path, Rows("a", rows))
    typed = {row["query_id"]: row["text"] for row in content(parts, "queries")}
    assert [typed[row["query_id"]] for row in content(parts, "pairs")] == ["red rug"]


# Rows that come again ---------------------------------------------------------------------------------------------


def numbered(number: int, day: int = 0, row_id: str | None = None) -> tuple:
    """An impression a second of its own."""
    moment, *rest = shown("red sofa", f"p{number % 3}", f"client {number % 7}", day)
    return (moment + timedelta(seconds=number), *rest, row_id)


def total(parts: list[PartAggregates]) -> int:
    return sum(row["shown"] for row in content(parts, "pairs"))


def test_rows_in_two_formats_count_once(tmp_path: Path) -> None:
    rows = [numbered(number) for number in range(12)]
    twin, other = Rows("twin", rows[::-1]), Rows("other", [*rows[:-1], numbered(99)])
    parts, problems = ingest(tmp_path, Rows("first", rows), twin, other)
    assert [part.name for part in parts] == ["first", "other"] and total(parts) == 24
    assert [(problem.where, problem.what, problem.rows) for problem in problems] == [
        ("twin", "has the same rows as first in another form: counted once", 12)
    ]
    again, _ = ingest(tmp_path, Rows("first", rows), twin, other)
    assert twin.loads == 1 and total(again) == 24
    few = [Rows(f"few {number}", [shown("red sofa", "p1", "c"), *[shown("lamp", "p1", "c")] * 2][::step])
           for number, step in enumerate((1, -1))]  # fmt: skip
    assert total(ingest(tmp_path / "few", *few)[0]) == 6, "too little to take one for the other"
    midnights = [(row[0].replace(hour=0, second=0), *row[1:]) for row in rows]
    untimed = [Rows("a", midnights), Rows("b", midnights[::-1])]
    assert total(ingest(tmp_path / "untimed", *untimed)[0]) == 24, "days alone tell no row from another"


def test_rows_that_were_delivered_twice_are_noted(tmp_path: Path) -> None:
    rows = [numbered(number) for number in range(100)]
    parts, problems = ingest(tmp_path / "a", Rows("a", rows + rows))
    ((problem),) = problems
    assert total(parts) == 200 and problem.rows == 100 and not problem.fatal
    assert problem.what.startswith("kept, 50% of its rows repeat another") and "data.columns.row_id" in problem.what
    assert not len(ingest(tmp_path / "b", Rows("b", rows + rows[:9]))[1]), "some people are quick"


def test_a_row_with_the_id_of_an_earlier_one_counts_once(tmp_path: Path) -> None:
    def deliver(folder: str, *parts: Rows) -> tuple[list[PartAggregates], list[tuple[str, int]]]:
        problems = Problems()
        numbered_log = replace(log(*parts), row_ids=True)
        aggregates = log_store.LogStore(tmp_path / folder).ingest(
            numbered_log, Privacy(), "2026-10-01", "2026-12-01", problems
        )
        what = "left out, rows with the row id of an earlier one"
        assert {problem.what for problem in problems} <= {what}
        return aggregates, [(problem.where, problem.rows) for problem in problems]

    first = Rows("a", [numbered(number, row_id=f"id {number}") for number in range(20)] * 2)
    later = Rows("b", [numbered(number, row_id=f"id {number}") for number in range(15, 30)])
    tomorrow = Rows("c", [numbered(number, 1, f"id {number}") for number in range(30, 50)])
    aggregates, left_out = deliver("store", first, later, tomorrow)
    assert total(aggregates) == 50 and left_out == [("a", 20), ("b", 5)]
    assert b"id 7" not in text_of(tmp_path / "store")
    aggregates, left_out = deliver("store", first, later, tomorrow)
    assert total(aggregates) == 50 and left_out == [("a", 20), ("b", 5)]
    assert [part.loads for part in (first, later, tomorrow)] == [1, 1, 1]
    # A file that comes late, before those that are kept: what it has is left out of them.
    late = Rows("_", [numbered(number, row_id=f"id {number}") for number in (19, 29, 99)])
    aggregates, left_out = deliver("store", late, first, later, tomorrow)
    assert total(aggregates) == 51 and left_out == [("a", 21), ("b", 6)]
    assert [part.loads for part in (first, later, tomorrow)] == [2, 2, 1]
    same = [numbered(number) for number in range(3)]
    named = [(*row[:-1], f"id {number}") for number, row in enumerate(same * 40)]
    assert total(deliver("other", Rows("d", named))[0]) == 120, "rows of one kind, but each with an id"
