"""The registry in a folder and in a bucket: immutable, verified, consistent whenever it is killed or raced."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from google.cloud import storage

from benchmarks import registry as benchmark
from benchmarks.registry import Bucket, Folder, Store
from distilrank import registry
from distilrank.config import Registry
from distilrank.core import artifacts, sketch, volume
from distilrank.core.errors import InputError, RunStopped
from distilrank.registry import ANCHOR, CHAMPION, content, gcs, ledger, local
from distilrank.registry.ledger import Ledger
from distilrank.registry.local import Local

TEST_SET = "ab" * 32


@pytest.fixture(scope="module")
def emulator() -> Iterator[None]:
    with benchmark.serve():
        yield


@pytest.fixture
def bucket(emulator: None, tmp_path: Path) -> Bucket:
    return Bucket(f"models/{uuid.uuid4().hex}", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "registry")


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)


def make(root: Path, weights: str, note: str = "") -> tuple[Path, str]:
    """A folder to publish, and its id."""
    made = root / f"version-{weights}{note}"
    name = benchmark.make_version(made, weights)
    if note:
        artifacts.write_json(made / "manifest.json", {"id": name, "note": note})
    return made, name


def published(store: Store, root: Path, *weights: str) -> tuple[registry.Backend, list[str]]:
    backend = registry.connect(store.config)
    names = []
    for text in weights:
        made, name = make(root, text)
        backend.publish(made, name)
        names.append(name)
    return backend, names


def promoted(store: Store, root: Path, *weights: str) -> tuple[registry.Backend, list[str]]:
    backend, names = published(store, root, *weights)
    for before, name in zip(["", *names], names, strict=False):
        backend.move(CHAMPION, name, before)
    return backend, names


def connect_elsewhere(store: Store, cache: Path) -> registry.Backend:
    """The registry as a machine sees it that has downloaded nothing yet."""
    return registry.connect(store.config.model_copy(update={"cache_dir": str(cache)}))


def file_of(store: Store, version: str, name: str) -> str:
    """Under which name a file of a version is stored."""
    folder = registry.connect(store.config).location(version).removeprefix(f"{store.config.uri}/")
    return f"{folder}/{name}"


# Opening ----------------------------------------------------------------------------------------------------------


def test_a_registry_that_nobody_has_written_to_is_empty(store: Store) -> None:
    backend = registry.connect(store.config)
    assert (backend.alias(CHAMPION), backend.aliases(), backend.versions(), backend.history()) == ("", {}, [], [])
    assert store.files() == {}
    with pytest.raises(InputError, match="no champion yet"):
        registry.resolve(backend, CHAMPION)
    with pytest.raises(InputError, match="no alias 'anchor'; it has: nothing"):
        registry.resolve(backend, ANCHOR)


def test_opening_makes_no_folder_and_a_file_uri_is_the_same_folder(folder: Folder, tmp_path: Path) -> None:
    assert registry.open(str(folder.root)).versions() == [] and list(tmp_path.iterdir()) == []
    backend, [name] = promoted(folder, tmp_path, "a")
    other = registry.open(f"file://{folder.root}")
    assert other.uri == backend.uri and registry.resolve(other, CHAMPION) == registry.resolve(other, name) == name


@pytest.mark.parametrize(
    ("uri", "named"), [("s3://x", "s3://"), ("", "''"), ("gs://", "gs://BUCKET"), ("gs://b//x", "//")]
)
def test_what_cannot_be_opened_is_named(uri: str, named: str) -> None:
    with pytest.raises(InputError, match="expected") as caught:
        registry.open(uri)
    assert named in str(caught.value)


def test_a_home_folder_that_nobody_has_is_named(emulator: None) -> None:
    with pytest.raises(InputError, match="registry '~nosuchuser/x': no such home folder"):
        registry.open("~nosuchuser/x")
    with pytest.raises(InputError, match=r"registry\.cache_dir '~nosuchuser/x': no such home folder"):
        registry.connect(Registry(uri="gs://models", cache_dir="~nosuchuser/x"))


def test_a_registry_exists_once_something_is_written(store: Store, tmp_path: Path) -> None:
    assert not registry.connect(store.config).exists()
    assert published(store, tmp_path, "a")[0].exists()


def test_check_leaves_nothing(store: Store) -> None:
    registry.connect(store.config).check()
    assert store.files() == {}


def test_check_names_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"registry .*/file: cannot use .*"):
        registry.open(str(tmp_path / "file")).check()


# Versions ---------------------------------------------------------------------------------------------------------


def test_a_version_comes_back_whole_and_verified(store: Store, tmp_path: Path) -> None:
    made, name = make(tmp_path, "a")
    (made / "report.html").symlink_to(made / "metrics.json")
    artifacts.write_json(made / "stage.json", {"seconds": 1.5})  # a stage's record is no part of a version
    before = benchmark.Folder(made).files()
    backend = registry.connect(store.config)
    backend.publish(made, name)
    assert benchmark.Folder(made).files() == before
    fetched_folder = backend.fetch(name)
    assert backend.versions() == [name] and backend.manifest(name)["id"] == name
    assert backend.location(name).startswith(backend.uri)
    fetched = benchmark.Folder(fetched_folder).files()
    assert fetched.pop("digest.json") and fetched == {key: before[key] for key in before if key != "stage.json"}
    assert not any(path.is_symlink() for path in fetched_folder.rglob("*"))
    backend.verify(name)


def test_publishing_again_is_a_no_op_and_other_content_an_error(store: Store, tmp_path: Path) -> None:
    backend, [name] = published(store, tmp_path, "a")
    before = store.files()
    backend.publish(tmp_path / "version-a", name)
    other, _ = make(tmp_path, "a", note="other")
    with pytest.raises(InputError, match=r"manifest\.json: version v\w+ is already published with different content"):
        backend.publish(other, name)
    assert store.files() == before


def test_an_id_identifies_the_students_bytes(store: Store, tmp_path: Path) -> None:
    made, name = make(tmp_path, "a")
    backend = registry.connect(store.config)
    with pytest.raises(InputError, match=f"is the student of version {name}, expected v000000000000"):
        backend.publish(made, "v000000000000")
    with pytest.raises(InputError, match="is not a version id"):
        backend.publish(made, "../outside")
    assert backend.versions() == []


def test_an_unknown_version_is_named_with_the_known_ones(store: Store, tmp_path: Path) -> None:
    backend, [name] = published(store, tmp_path, "a")
    for wrong in ("v123456789abc", "../versions", ""):
        asks: list[Callable[[str], Any]] = [backend.fetch, backend.manifest, backend.verify]
        for ask in [*asks, lambda text: backend.move(CHAMPION, text, "")]:
            with pytest.raises(InputError, match=f"no version {wrong!r}; it has: {name}"):
                ask(wrong)
    assert backend.aliases() == {}


# Damage -----------------------------------------------------------------------------------------------------------


def test_a_changed_byte_anywhere_is_caught(store: Store, tmp_path: Path) -> None:
    result = benchmark.damage(store, tmp_path, count=16, seed=int(time.time()))
    assert result["caught"] == result["changed_bytes"] == 16, result["missed"]


@pytest.mark.parametrize("name", ["aliases/champion.json", "history/champion/00000001.json", "digest.json"])
def test_white_space_is_part_of_the_bytes(store: Store, tmp_path: Path, name: str) -> None:
    _, [version] = promoted(store, tmp_path, "a")
    if name == "digest.json":
        stored = file_of(store, version, name) if isinstance(store, Folder) else f"versions/{version}.json"
    else:
        stored = name
    store.put(stored, store.files()[stored].replace(b"  ", b" \t", 1))
    with pytest.raises(
        InputError, match=rf"{os.path.basename(stored)}: damaged, expected .* exactly as it was written"
    ):
        benchmark._load(store.config.model_copy(update={"cache_dir": str(tmp_path / "fresh")}), stored)


@pytest.mark.parametrize("file", ["student/model.safetensors", "manifest.json", "student/digest.json"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damage_of_a_version_is_named(store: Store, tmp_path: Path, file: str, damage: str) -> None:
    backend, [first, second] = promoted(store, tmp_path, "a", "b")
    stored = file_of(store, first, file)
    if damage == "changed":
        store.put(stored, store.files()[stored][:-1] + b"?")
    else:
        store.remove(stored)
    named = rf"{backend.uri}/{stored}: (digest|missing|no such)"
    for ask in (connect_elsewhere(store, tmp_path / "fresh").fetch, backend.verify):
        with pytest.raises(InputError, match=named):
            ask(first)
    with pytest.raises(InputError, match=r".*model\.safetensors" if "model" in file else "json"):
        connect_elsewhere(store, tmp_path / "fresh").rollback()
    assert backend.alias(CHAMPION) == second and len(backend.history()) == 2


def test_a_file_that_was_added_to_a_folder_is_detected(folder: Folder, tmp_path: Path) -> None:
    backend, [name] = published(folder, tmp_path, "a")
    for extra in ("student/extra.bin", "stage.json"):
        path = folder.root / "versions" / name / extra
        path.write_text("{}")
        with pytest.raises(InputError, match=rf"{extra}: not listed"):
            backend.fetch(name)
        path.unlink()
    backend.fetch(name)


def test_evidence_that_was_replaced_under_matching_seals_is_detected(store: Store, tmp_path: Path) -> None:
    """The id stands for the student alone, so it is the alias's record that knows the rest."""
    backend, [name] = promoted(store, tmp_path, "a")
    forged = Folder(tmp_path / "forged") if isinstance(store, Folder) else Bucket(store.prefix + "-2", tmp_path / "c2")
    made, _ = make(tmp_path, "a", note="better figures")
    other = registry.connect(forged.config)
    other.publish(made, name)
    for stored in [stored for stored in store.files() if stored.startswith("versions/")]:
        store.remove(stored)
    for stored, data in forged.files().items():
        store.put(stored, data)
    other.fetch(name)
    for ask in (connect_elsewhere(store, tmp_path / "fresh").fetch, backend.verify):
        with pytest.raises(
            InputError, match=r"digest\.json: digest \w+ differs from \w+, to which champion was pointed"
        ):
            ask(name)


def test_another_student_under_matching_seals_is_detected(folder: Folder, tmp_path: Path) -> None:
    backend, names = published(folder, tmp_path, "a", "b")
    first, second = (folder.root / "versions" / name for name in names)
    (first / "student" / "model.safetensors").write_bytes((second / "student" / "model.safetensors").read_bytes())
    artifacts.seal(first / "student")
    artifacts.seal(first)
    with pytest.raises(InputError, match=f"expected {names[0]}"):
        backend.fetch(names[0])


def test_a_list_of_files_cannot_lead_outside(bucket: Bucket, tmp_path: Path) -> None:
    files = {"../../outside": "0" * 64}
    sealed = content.encode({"digest": artifacts.digest_json(files), "files": files})
    with pytest.raises(InputError, match=r"lists '../../outside', expected files inside it"):
        content.parse_seal(sealed, "gs://x")


def test_records_that_were_removed_or_put_back_are_detected(store: Store, tmp_path: Path) -> None:
    backend, [first, second] = published(store, tmp_path, "a", "b")
    backend.move(CHAMPION, first, "")
    old = store.files()["aliases/champion.json"]
    backend.move(CHAMPION, second, first)
    now = store.files()

    store.put("aliases/champion.json", old)
    with pytest.raises(InputError, match=r"champion\.json: is record 1, but the history of champion has 2 records"):
        backend.history()
    store.remove("aliases/champion.json")
    for ask in (backend.history, backend.aliases, lambda: backend.move(CHAMPION, first, "")):
        with pytest.raises(InputError, match=r"champion\.json: is missing, but champion has a history"):
            ask()
    store.put("aliases/champion.json", now["aliases/champion.json"])
    store.remove("history/champion/00000001.json")
    with pytest.raises(InputError, match=r"00000001\.json: is missing, although 00000002\.json exists"):
        backend.history()
    store.put("history/champion/00000001.json", now["history/champion/00000002.json"])
    with pytest.raises(InputError, match=r"00000001\.json: holds record 2 .* expected the record that its name states"):
        backend.history()
    store.put("history/champion/00000001.json", b"[]\n")
    with pytest.raises(InputError, match=r"00000001\.json: holds \[\], expected a JSON object"):
        backend.rollback()
    store.put("history/champion/00000001.json", now["history/champion/00000001.json"])
    assert backend.rollback() == first


def test_a_record_that_does_not_follow_the_one_before_is_detected(store: Store, tmp_path: Path) -> None:
    backend, _ = promoted(store, tmp_path, "a", "b")
    name = "history/champion/00000001.json"
    record = json.loads(store.files()[name]) | {"by": "somebody else"}
    record["digest"] = artifacts.digest_json({key: value for key, value in record.items() if key != "digest"})
    store.put(name, content.encode(record))
    with pytest.raises(InputError, match=r"00000002\.json: does not follow the previous record"):
        backend.history()


# Aliases ----------------------------------------------------------------------------------------------------------


def test_moving_compares_before_it_sets(store: Store, tmp_path: Path) -> None:
    backend, [first, second, third] = published(store, tmp_path, "a", "b", "c")
    backend.move(CHAMPION, first, "")
    backend.move(CHAMPION, second, first)
    before = store.files()
    with pytest.raises(RunStopped, match=f"champion is {second}, expected {first}; someone else moved it"):
        backend.move(CHAMPION, third, first)
    with pytest.raises(RunStopped, match=f"champion is {second}, expected not set"):
        backend.move(CHAMPION, third, "")
    backend.move(CHAMPION, second, first)  # a repeated move, after a kill say
    assert store.files() == before
    alias = json.loads(before["aliases/champion.json"])
    assert (alias["version"], alias["previous"], alias["number"]) == (second, first, 2)
    assert alias["since"].endswith("Z")


def test_aliases_have_names_and_a_history_each(store: Store, tmp_path: Path) -> None:
    backend, [first, second] = promoted(store, tmp_path, "a", "b")
    backend.move(ANCHOR, first, "", action="move", reason="the first")
    backend.move("holiday-2026", second, "", action="move")
    assert backend.aliases() == {ANCHOR: first, CHAMPION: second, "holiday-2026": second}
    assert registry.resolve(backend, ANCHOR) == first
    history = backend.history()
    assert [(record["alias"], record["action"], record["reason"]) for record in history] == [
        (CHAMPION, "promote", ""),
        (CHAMPION, "promote", ""),
        (ANCHOR, "move", "the first"),
        ("holiday-2026", "move", ""),
    ]
    assert all("@" in record["by"] for record in history)
    for wrong in ("", "Champion", "../x", "a" * 42, first):
        with pytest.raises(InputError, match=f"'{wrong}' is not an alias, expected"):
            backend.move(wrong, second, "")
    with pytest.raises(
        InputError, match=f"no alias 'none'; it has: anchor, champion, holiday-2026, {min(first, second)}"
    ):
        registry.resolve(backend, "none")


def test_rollback_goes_back_move_by_move(store: Store, tmp_path: Path) -> None:
    backend, [first, second, third] = promoted(store, tmp_path, "a", "b", "c")
    assert backend.rollback(reason="too slow") == second == backend.alias(CHAMPION)
    assert backend.rollback() == first == backend.alias(CHAMPION)
    with pytest.raises(InputError, match=f"{first} is the first champion, so there is nothing to roll back to"):
        backend.rollback()
    backend.move(CHAMPION, third, first)
    assert backend.rollback() == first
    assert backend.versions() == sorted([first, second, third])
    moves = [
        (record["action"], record["previous"], record["version"], record["reason"]) for record in backend.history()
    ]
    assert moves == [
        ("promote", "", first, ""),
        ("promote", first, second, ""),
        ("promote", second, third, ""),
        ("rollback", third, second, "too slow"),
        ("rollback", second, first, ""),
        ("promote", first, third, ""),
        ("rollback", third, first, ""),
    ]
    with pytest.raises(InputError, match="anchor was never set, so there is nothing to roll back"):
        backend.rollback(ANCHOR)
    backend.move(ANCHOR, first, "", action="move")
    backend.move(ANCHOR, third, first, action="move")
    assert backend.rollback(ANCHOR) == first == backend.alias(CHAMPION)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("expect", [False, True])
def test_a_rollback_that_fails_at_any_write_is_finished_by_its_repeat(
    store: Store, tmp_path: Path, monkeypatch: Any, when: str, expect: bool
) -> None:
    backend, [_, second, third] = promoted(store, tmp_path, "a", "b", "c")
    owner = Local if isinstance(store, Folder) else gcs.Bucket
    write, broken = owner._write, []

    def roll_back() -> str:
        return backend.rollback(reason="too slow", expected=third if expect else "")

    for boundary in range(1, 9):
        names: list[str] = []

        def breaking(self: Ledger, name: str, *arguments: Any, last: int = boundary, names: list[str] = names) -> bool:
            names.append(name)
            if len(names) == last and when == "after":
                write(self, name, *arguments)
            if len(names) == last:
                raise InputError("the storage refuses")
            return write(self, name, *arguments)

        with monkeypatch.context() as inner:
            inner.setattr(owner, "_write", breaking)
            try:
                roll_back()
            except InputError as error:
                broken.append(names[-1].partition("/")[0])
                assert "the storage refuses" in str(error) and ("repeat the command" in str(error)) == (
                    broken[-1] == "history"
                )
            else:
                break
        if when == "after" and broken[-1:] == ["history"] and not expect:
            break  # it is done, and only who called does not know
        assert roll_back() == second == backend.alias(CHAMPION)
        records = backend.history()
        assert [record["action"] for record in records].count("rollback") == boundary
        assert f"history/champion/{len(records):08d}.json" in store.files()
        backend.move(CHAMPION, third, second)
    assert broken == ["aliases", "history"] if owner is Local else ["versions", "aliases", "history"]


def test_a_rollback_that_was_killed_before_its_record_is_finished_by_its_repeat(store: Store, tmp_path: Path) -> None:
    backend, [_, second, third] = promoted(store, tmp_path, "a", "b", "c")
    killed_at(Local if isinstance(store, Folder) else gcs.Bucket, "_write", backend.rollback, when="history/")
    assert backend.alias(CHAMPION) == second
    assert backend.rollback() == second == backend.alias(CHAMPION) and len(backend.history()) == 4
    assert backend.rollback(expected=third) == second and len(backend.history()) == 4, "repeated once more"


def test_a_rollback_of_a_version_happens_once(store: Store, tmp_path: Path) -> None:
    backend, [first, second, third] = promoted(store, tmp_path, "a", "b", "c")
    with pytest.raises(
        RunStopped, match=f"champion is {third}, expected {second}; .*so it stays and nothing is rolled"
    ):
        backend.rollback(expected=second)
    for _ in range(3):  # two people at once, say, and one of them twice
        assert backend.rollback(expected=third) == second
    assert len(backend.history()) == 4
    assert backend.rollback(expected=second) == first
    with pytest.raises(RunStopped, match=f"champion is {first}, expected {third}"):
        backend.rollback(expected=third)
    backend.move(CHAMPION, third, first)
    assert backend.rollback(expected=third) == first and len(backend.history()) == 7, "another rollback of it"


def test_of_many_concurrent_moves_one_wins(store: Store, tmp_path: Path) -> None:
    result = benchmark.race(store, tmp_path, promoters=5, rounds=2)
    assert (result["rounds_with_one_winner"], result["winner_is_not_the_champion"], result["records"]) == (2, 0, 2)
    assert result["problems"] == []


def test_a_move_that_was_read_too_early_is_refused(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    backend, [first, second, third] = published(store, tmp_path, "a", "b", "c")
    backend.move(CHAMPION, first, "")
    other, claim = registry.connect(store.config), Ledger._swap

    def overtaken(self: Ledger, alias: str, version: str, *rest: Any) -> None:
        if version == third:
            with monkeypatch.context() as inner:
                inner.setattr(Local, "_changing", lambda self: local.contextlib.nullcontext())
                other.move(CHAMPION, second, first)
        claim(self, alias, version, *rest)

    monkeypatch.setattr(Ledger, "_swap", overtaken)
    with pytest.raises(RunStopped, match=f"champion is {second}, expected {first}; someone else moved it"):
        backend.move(CHAMPION, third, first)
    assert [record["version"] for record in backend.history()] == [first, second]


def test_a_folder_whose_locks_do_not_work_is_refused(folder: Folder, tmp_path: Path, monkeypatch: Any) -> None:
    backend, [first, second] = published(folder, tmp_path, "a", "b")
    backend.move(CHAMPION, first, "")
    before = folder.files()
    monkeypatch.setattr(volume.fcntl, "flock", lambda *_: None)
    acts = (
        backend.check,
        lambda: backend.move(CHAMPION, second, first),
        backend.rollback,
        lambda: backend.record_test_evaluation(TEST_SET, first),
        lambda: backend.publish(*make(tmp_path, "c")),
        lambda: backend.collect(1, dry_run=False),
    )
    for act in acts:
        with pytest.raises(
            InputError, match=r"its lock is granted a second time .* expected a file system with working"
        ):
            act()
    assert folder.files() == before and backend.versions() == sorted([first, second])


def test_two_writers_without_locks_leave_a_state_that_can_be_repaired(folder: Folder, tmp_path: Path) -> None:
    backend, [first, second] = promoted(folder, tmp_path, "a", "b")
    record = json.loads(folder.files()["aliases/champion.json"]) | {"token": "of the other writer"}
    record["digest"] = artifacts.digest_json({key: value for key, value in record.items() if key != "digest"})
    folder.put("aliases/champion.json", content.encode(record))
    acts: tuple[Callable[[], Any], ...] = (
        backend.history,
        backend.rollback,
        lambda: backend.move(CHAMPION, first, second),
    )
    for act in acts:
        with pytest.raises(
            InputError, match=r"00000002\.json: .*two writers .*copy the newest file of the alias's hist"
        ):
            act()
    folder.put("aliases/champion.json", folder.files()["history/champion/00000002.json"])
    assert backend.rollback() == first


def test_versions_without_a_champion_are_no_empty_registry(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    backend, [first, second] = published(store, tmp_path, "a", "b")  # aliases and history were lost, say
    lost = rf"has versions \({min(first, second)}, .*\) but no champion: .*\(`distilrank registry promote VERSION --re"
    monkeypatch.setattr(ledger, "MINIMUM_AGE", -60.0)
    asks = (
        lambda: registry.require_champion(backend),
        lambda: registry.resolve(backend, CHAMPION),
        backend.rollback,
        lambda: backend.collect(1, dry_run=False),
    )
    for ask in asks:
        with pytest.raises(InputError, match=lost):
            ask()
    assert len(backend.versions()) == 2
    backend.move(ANCHOR, first, "", action="move")
    with pytest.raises(InputError, match=lost):
        registry.require_champion(backend)
    backend.move(CHAMPION, second, "", action="move", reason="it was in use")
    registry.require_champion(backend)
    assert registry.resolve(backend, CHAMPION) == second and backend.collect(1, dry_run=False) == []


@pytest.mark.parametrize("name", ["aliases/champion.json", "history/champion/00000001.json", "versions/manifest.json"])
def test_deeply_nested_json_is_one_line(store: Store, tmp_path: Path, name: str) -> None:
    backend, [version] = promoted(store, tmp_path, "a")
    for text in (b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900):
        if name.startswith("versions"):
            store.put(file_of(store, version, "digest.json"), text)
        else:
            store.put(name, text)
        with pytest.raises(InputError, match=r"(not JSON|damaged)") as caught:
            backend.verify(version)
        assert len(str(caught.value)) < 400


# Killed -----------------------------------------------------------------------------------------------------------


def killed_at(owner: Any, name: str, action: Callable[..., Any], *arguments: Any, when: str = "") -> None:
    """Run `action` in a process that is killed as it comes to call `owner.name` (of a file whose name has `when`)."""

    def child() -> None:
        original = getattr(owner, name)

        def fatal(*call_arguments: Any, **options: Any) -> Any:
            if when in " ".join(map(str, call_arguments)):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*call_arguments, **options)

        setattr(owner, name, fatal)
        action(*arguments)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_kills_at_random_moments_break_nothing(store: Store, tmp_path: Path) -> None:
    is_folder = isinstance(store, Folder)

    def make(number: int) -> Store:
        part = f"killed-{number}"
        return Folder(tmp_path / part) if is_folder else Bucket(f"{store.prefix}/{part}", tmp_path / "cache")

    result = benchmark.kill(make, tmp_path, count=3, seed=int(time.time()))
    assert (result["kills"], result["broken"]) == (3, 0), result


@pytest.mark.parametrize("point", [(artifacts, "seal"), (Local, "_changing")])
def test_a_killed_publish_leaves_nothing_to_see_and_is_cleaned_up_when_old(
    folder: Folder, tmp_path: Path, point: Any
) -> None:
    made, name = make(tmp_path, "a")
    long_ago = time.time() - 30 * 24 * 3600
    os.utime(made, (long_ago, long_ago))  # the attempt is as old as itself, not as its source
    backend = registry.connect(folder.config)
    killed_at(*point, backend.publish, made, name)
    [left] = [path for path in (folder.root / "versions").iterdir()]
    assert left.name.startswith(".") and backend.versions() == []

    other, other_name = make(tmp_path, "b")
    backend.publish(other, other_name)  # that attempt may still be alive
    assert left.exists() and backend.versions() == [other_name]
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(left, (two_days_ago, two_days_ago))
    backend.publish(made, name)
    assert not left.exists() and backend.versions() == sorted([name, other_name])
    backend.fetch(name)


@pytest.mark.parametrize("when", ["student/", "versions/v"])
def test_a_killed_upload_leaves_nothing_to_see_and_is_collected_when_old(
    bucket: Bucket, tmp_path: Path, monkeypatch: Any, when: str
) -> None:
    made, name = make(tmp_path, "a")
    backend = registry.connect(bucket.config)
    monkeypatch.setattr(gcs, "TRANSFERS", 1)
    owner = storage.Blob if "student" in when else gcs.Bucket
    point = "upload_from_filename" if "student" in when else "_write"
    killed_at(owner, point, backend.publish, made, name, when=when)
    left = set(bucket.files())
    assert left and backend.versions() == []
    with pytest.raises(InputError, match="no version"):
        backend.fetch(name)
    backend.publish(made, name)
    assert backend.collect(1, dry_run=False) == [] and left < set(bucket.files()), "that attempt may still be alive"
    backend.move(CHAMPION, name, "")
    monkeypatch.setattr(ledger, "MINIMUM_AGE", -60.0)
    assert backend.collect(1, dry_run=False) == [] and not left & set(bucket.files())
    connect_elsewhere(bucket, tmp_path / "fresh").fetch(name)


def test_killed_between_alias_and_history_the_history_is_completed(store: Store, tmp_path: Path) -> None:
    backend, [first, second, third] = published(store, tmp_path, "a", "b", "c")
    backend.move(CHAMPION, first, "")
    owner = Local if isinstance(store, Folder) else gcs.Bucket
    killed_at(owner, "_write", backend.move, CHAMPION, second, first, when="history/")
    assert backend.alias(CHAMPION) == second
    assert [record["version"] for record in backend.history()] == [first, second]
    assert len([name for name in store.files() if name.startswith("history/")]) == 1
    backend.move(CHAMPION, second, first)  # what was killed is done again
    assert len([name for name in store.files() if name.startswith("history/")]) == 2
    killed_at(owner, "_write", backend.rollback, when="history/")
    backend.move(CHAMPION, third, first)
    logged = [json.loads(data) for name, data in sorted(store.files().items()) if name.startswith("history/")]
    assert [record["version"] for record in logged] == [first, second, first, third]
    assert logged == backend.history()


# Looks and collection ---------------------------------------------------------------------------------------------


def test_test_evaluations_are_counted_once_per_candidate_and_test_set(store: Store) -> None:
    backend = registry.connect(store.config)
    first, two = "v" + "1" * 12, "v" + "2" * 12
    assert [backend.record_test_evaluation(TEST_SET, name) for name in (first, first, two, first)] == [1, 1, 2, 2]
    assert backend.record_test_evaluation("cd" * 32, first) == 1
    assert sorted(name for name in store.files() if TEST_SET in name) == [
        f"looks/{TEST_SET}/{first}",
        f"looks/{TEST_SET}/{two}",
    ]
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda number: backend.record_test_evaluation("ef" * 32, f"v{number:012x}"), range(4)))
    assert max(counts) == 4 and backend.record_test_evaluation("ef" * 32, f"v{0:012x}") == 4
    for test_set, candidate in (("../x", first), (TEST_SET, "../x")):
        with pytest.raises(InputError, match=r"'\.\./x' is not a (test set|candidate), expected"):
            backend.record_test_evaluation(test_set, candidate)


def test_evaluations_on_a_test_set_with_many_of_the_same_queries_count_too(store: Store) -> None:
    backend = registry.connect(store.config)
    queries = [f"{number:016x}" for number in range(100)]
    names = [f"v{number:012x}" for number in range(5)]

    def evaluate(test_set: str, candidate: str, chosen: list[str]) -> int:
        return backend.record_test_evaluation(test_set * 32, candidate, sketch.from_ids(chosen))

    assert backend.record_test_evaluation("0a" * 32, names[0]) == 1  # as earlier releases recorded it
    assert evaluate("0a", names[1], queries) == 2  # and its candidates count once the set's queries are known
    assert evaluate("0b", names[2], queries) == 3  # other targets, the same queries
    assert evaluate("0b", names[1], queries) == 3  # a candidate counts once, whatever it was judged by
    assert evaluate("0c", names[3], [*queries[:25], *(f"other {number}" for number in range(75))]) == 4
    assert evaluate("0d", names[3], [*queries[26:50], *(f"more {number}" for number in range(76))]) == 1  # 24 of 100
    assert evaluate("0e", names[4], queries[:40]) == 5  # all of them in 0a, and more than a quarter in 0c
    assert backend.record_test_evaluation("0a" * 32, names[0]) == 2  # without its queries, this very set alone
    with pytest.raises(InputError, match="the sketch of test set 0f0f0f0f0f0f is damaged; evaluate again"):
        backend.record_test_evaluation("0f" * 32, names[0], "../x")
    assert not [name for name in store.files() if "0f0f" in name]


def test_overlaps_are_estimated_from_samples() -> None:
    queries = [f"{number:016x}" for number in range(12_000)]
    large = sketch.from_ids(queries[:8000])
    assert len(large) == sketch.SIZE * sketch.DIGITS
    assert sketch.shared(sketch.from_ids(queries[4000:]), large) == pytest.approx(0.5, abs=0.06)
    assert sketch.shared(large, sketch.from_ids(queries[7000:7400])) == pytest.approx(0.05, abs=0.03)
    assert sketch.shared(sketch.from_ids(queries[7000:7400]), large) == 1
    assert sketch.shared(sketch.from_ids(queries[8000:8400]), large) == 0
    assert (
        sketch.shared(sketch.from_ids(queries[:5]), sketch.from_ids(queries[4:9])) == 0.2
    )  # small ones are compared exactly
    assert sketch.shared(sketch.from_ids(queries[8000:8005]), large) == 1  # too few of them to tell


def test_what_nothing_needs_is_collected_once_it_is_a_day_old(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    backend, names = promoted(store, tmp_path, *"abcd")
    backend.move(ANCHOR, names[1], "", action="move")
    backend.publish(*make(tmp_path, "never"))
    never = make(tmp_path, "never")[1]
    before = store.files()
    assert backend.collect(1, dry_run=False) == [] and store.files() == before, "younger than a day"
    monkeypatch.setattr(ledger, "MINIMUM_AGE", -60.0)
    assert backend.collect(3, dry_run=True) == sorted([names[0], never]) and store.files() == before
    assert backend.collect(3, dry_run=False) == sorted([names[0], never])
    assert backend.versions() == sorted(names[1:])
    assert backend.collect(1, dry_run=False) == [names[2]]
    assert backend.versions() == sorted([names[1], names[3]]), "those that champion and anchor name"
    assert not any(names[0] in name or never in name for name in store.files() if name.startswith("versions/"))
    for name in (names[1], names[3]):
        connect_elsewhere(store, tmp_path / "fresh").fetch(name)
    with pytest.raises(InputError, match=f"no version '{names[2]}'"):
        backend.rollback()
    assert len(backend.history()) == 5
    with pytest.raises(InputError, match="keep is 0, expected at least 1"):
        backend.collect(0, dry_run=True)
    # What was removed can be published again.
    backend.publish(tmp_path / "version-a", names[0])
    backend.move(CHAMPION, names[0], names[3])


def test_nothing_is_collected_by_a_damaged_history(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    backend, _ = promoted(store, tmp_path, "a", "b")
    store.put("history/champion/00000001.json", b"{}\n")
    monkeypatch.setattr(ledger, "MINIMUM_AGE", -60.0)
    with pytest.raises(InputError, match=r"00000001\.json: damaged"):
        backend.collect(1, dry_run=False)
    assert len(backend.versions()) == 2


def test_a_version_that_is_promoted_while_others_are_collected_stays(
    bucket: Bucket, tmp_path: Path, monkeypatch: Any
) -> None:
    backend, [first, second, third] = promoted(bucket, tmp_path, "a", "b", "c")
    needed = Ledger._needed

    def overtaken(self: Ledger, keep: int) -> set[str]:
        names = needed(self, keep)
        registry.connect(bucket.config).move(CHAMPION, first, third)
        return names

    monkeypatch.setattr(ledger, "MINIMUM_AGE", -60.0)
    monkeypatch.setattr(Ledger, "_needed", overtaken)
    assert backend.collect(1, dry_run=False) == [second]
    assert registry.resolve(backend, CHAMPION) == first
    connect_elsewhere(bucket, tmp_path / "fresh").fetch(first)


def test_publishing_a_version_again_renews_its_age(folder: Folder, tmp_path: Path) -> None:
    backend, [name, other, champion] = published(folder, tmp_path, "a", "b", "c")
    backend.move(CHAMPION, champion, "")
    for version in (name, other):
        seal = folder.root / "versions" / version / "digest.json"
        os.utime(seal, (time.time() - 2 * ledger.MINIMUM_AGE,) * 2)
    backend.publish(tmp_path / "version-a", name)
    assert backend.collect(1, dry_run=False) == [other]


# Cloud Storage ----------------------------------------------------------------------------------------------------


def test_versions_are_downloaded_once_and_a_damaged_copy_again(
    bucket: Bucket, tmp_path: Path, monkeypatch: Any
) -> None:
    backend, [name] = published(bucket, tmp_path, "a")
    downloads: list[str] = []
    download = gcs.Bucket._download
    monkeypatch.setattr(
        gcs.Bucket, "_download", lambda self, root, target: downloads.append(name) or download(self, root, target)
    )
    cached = backend.fetch(name)
    assert backend.fetch(name) == cached and len(downloads) == 1
    weights = cached / "student" / "model.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + b"?")
    assert backend.fetch(name) == cached and weights.read_bytes() == intact and len(downloads) == 2
    weights.write_bytes(b"")
    killed_at(gcs.Bucket, "_cached", backend.fetch, name)
    killed_at(storage.Blob, "download_to_filename", backend.fetch, name)
    assert backend.fetch(name) == cached and weights.read_bytes() == intact
    assert {path.name for path in cached.parent.iterdir()} == {name, f".{name}.lock"}, "whatever was killed"


def _fetch(config: Registry, name: str, barrier: Any) -> None:
    barrier.wait()
    registry.connect(config).fetch(name)


def test_many_may_download_at_once(bucket: Bucket, tmp_path: Path) -> None:
    _, [name] = published(bucket, tmp_path, "a")
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    fetchers = [context.Process(target=_fetch, args=(bucket.config, name, barrier)) for _ in range(4)]
    for fetcher in fetchers:
        fetcher.start()
    for fetcher in fetchers:
        fetcher.join()
    assert [fetcher.exitcode for fetcher in fetchers] == [0] * 4
    content.verify(registry.connect(bucket.config).fetch(name), name)


def test_a_cache_that_cannot_be_used_is_named(bucket: Bucket, tmp_path: Path) -> None:
    _, [name] = published(bucket, tmp_path, "a")
    (tmp_path / "file").touch()
    expected = rf"registry\.cache_dir {tmp_path}/file/.*: cannot be used \(Not a directory\)"
    with pytest.raises(InputError, match=expected):
        connect_elsewhere(bucket, tmp_path / "file").fetch(name)


@pytest.fixture
def front(emulator: None, monkeypatch: Any) -> Iterator[Callable[[Callable[..., Any]], None]]:
    """Puts a server of the test's own in front of the emulator."""
    servers = []

    def put(answer: Callable[..., Any]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, data, headers = answer(self, body)
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _handle

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_address[1]}")

    yield put
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_write_whose_answer_was_lost_is_distinguished_from_a_lost_race(
    bucket: Bucket, front: Any, tmp_path: Path
) -> None:
    backend, [first, second] = published(bucket, tmp_path, "a", "b")
    target, lost = os.environ["STORAGE_EMULATOR_HOST"], []

    def forward(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, Any]:
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        asked = urllib.request.Request(target + request.path, body or None, headers, method=request.command)
        try:
            with urllib.request.urlopen(asked) as answer:
                reply = answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), {}
        if request.command == "POST" and b"aliases/" in body and not lost:
            lost.append(request.path)
            return 503, b"{}", {}
        return reply

    front(forward)
    proxied = registry.connect(bucket.config)
    proxied.move(CHAMPION, first, "")
    assert lost and backend.alias(CHAMPION) == first and len(backend.history()) == 1
    with pytest.raises(RunStopped, match="someone else moved it"):
        proxied.move(CHAMPION, second, "")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "credentials .* run as a service account that has roles/storage.{}"),
        (403, "access is denied .* grant roles/storage.{} on gs://"),
        (404, "bucket gs://benchmark does not exist"),
    ],
)
def test_a_refusal_names_the_role_to_grant(
    bucket: Bucket, front: Any, tmp_path: Path, status: int, message: str
) -> None:
    promoted(bucket, tmp_path, "a")
    front(lambda request, body: (status, b'{"error": {"message": "somebody has no access"}}', {"X": "y"}))
    denied = connect_elsewhere(bucket, tmp_path / "fresh")
    for ask in (denied.versions, denied.check, denied.history):
        with pytest.raises(InputError, match=message.format("objectViewer")):
            ask()


def test_recording_a_test_evaluation_needs_no_right_to_replace(bucket: Bucket, front: Any, tmp_path: Path) -> None:
    backend, [first, second] = promoted(bucket, tmp_path, "a", "b")
    target = os.environ["STORAGE_EMULATOR_HOST"]
    made: list[str] = []

    def viewer_and_creator(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, Any]:
        if request.command != "GET" and ("ifGenerationMatch=0" not in request.path or b"looks/" not in body):
            return 403, b'{"error": {"message": "no storage.objects.delete"}}', {}
        made.append(request.command)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        asked = urllib.request.Request(target + request.path, body or None, headers, method=request.command)
        try:
            with urllib.request.urlopen(asked) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), {}

    front(viewer_and_creator)
    reader = connect_elsewhere(bucket, tmp_path / "fresh")
    assert reader.fetch(registry.resolve(reader, CHAMPION)).name == second
    assert len(reader.history()) == 2 and reader.record_test_evaluation(
        TEST_SET, first
    ) == 1 == reader.record_test_evaluation(TEST_SET, first)
    assert "POST" in made
    for change in (
        lambda: reader.move(CHAMPION, first, second),
        reader.rollback,
        reader.check,
        lambda: reader.publish(*make(tmp_path, "c")),
    ):
        with pytest.raises(InputError, match=r"access is denied .* grant roles/storage.objectUser on gs://benchmark"):
            change()
    assert backend.alias(CHAMPION) == second


def test_without_credentials_the_error_says_whose_are_needed(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with pytest.raises(InputError, match=r"no credentials .* a service account that has roles/storage.objectViewer on"):
        registry.open("gs://shop/models").check()


def test_the_promoter_is_another_identity(monkeypatch: Any, tmp_path: Path) -> None:
    """The current user reads; writes are made as the promoter."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    credentials = {"type": "authorized_user", "client_id": "x", "client_secret": "y", "refresh_token": "z"}
    artifacts.write_json(tmp_path / "key.json", credentials)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    backend = registry.connect(Registry(uri="gs://shop/models", promoter="promoter@shop.iam.gserviceaccount.com"))
    assert backend._writer._credentials.service_account_email == "promoter@shop.iam.gserviceaccount.com"
    assert not hasattr(backend._reader._credentials, "service_account_email")
