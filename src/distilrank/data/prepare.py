"""From judgements, catalogue and logs to what the models learn from: splits, candidates, shards, traffic, a profile.

Queries of the dev and test sides never become candidates, not even those that nobody has judged yet: a student that
had learned from their products in the log would be tested on what it knows. Memory follows the catalogue's short
fields, the judged pairs and the distinct queries, never the rows of the log.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distilrank.config import Data, Prepare
from distilrank.core import artifacts, normalize, progress, schemas, unicode_script
from distilrank.core.arrays import systematic_sample
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.core.schemas import SIDES, STRATA
from distilrank.core.scratch import scratch_folder
from distilrank.data import bm25, log_store, profile, profile_page, sources, splits
from distilrank.data.candidates import PROVENANCES, Embedded, Mined, Miner, ShardBalancer
from distilrank.data.corpus import Corpus, read, soft_targets
from distilrank.data.impressions import Impressions, Pairs
from distilrank.data.sources import base
from distilrank.data.splits import TRAIN
from distilrank.modeling import references
from distilrank.modeling.bi_encoder import Retriever, TokenCounter
from distilrank.modeling.neighbors import Neighbors

STAGE = "prepare"
HELD_OUT = "held-out queries (dev and test side) stand in for the newest traffic"
_ROWS = 1 << 14  # pairs that are written at a time, with their descriptions
_TOKENS_SEEN = 256  # of a description, by any teacher in sight
_SEEN = 4 * _TOKENS_SEEN  # in characters, of which a token has four or so
_COUNTED = 1000  # products whose tokens are counted to learn how many characters a token has


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 2)


def prepare(
    config: Prepare,
    data: Data,
    *,
    reference_start: str,
    newest_start: str,
    newest_end: str,
    data_digest: str,
    judgements: Path,
    candidates: Path,
    traffic: Path,
    profile_folder: Path,
) -> list[str]:
    """Write the judgements by split, the candidates by shard, both samples of traffic and the data profile.

    Dev and test keep the `dev_queries` and `test_queries` that come first in hash order, train the whole queries that
    come first in hash order within `judged_pairs` pairs (always one); the pairs of its other queries join the log
    without rating, time or click. A judged train query that the log has too stays among both judgements and
    candidates: its ratings teach by the student's human term, its other products by the teacher's scores.

    Args:
        config: the knobs.
        data: where the data comes from.
        reference_start: ISO 8601, a midnight; the training window is [reference_start, newest_start). Empty: the log
            has no time.
        newest_start: the newest traffic is [newest_start, newest_end); empty likewise.
        newest_end: see above.
        data_digest: digest of the outside data, for the record.
        judgements: folder for train.parquet, dev.parquet, test.parquet and protocol.json.
        candidates: folder for shard-00000.parquet and so on.
        traffic: folder for reference.parquet and current.parquet.
        profile_folder: folder for profile.json and stage.json.

    Returns:
        Names of the shards, without suffix.

    Raises:
        InputError: the data is unusable; a split, a window or the candidates are empty.
        RunStopped: a query is on two sides.
    """
    with (
        artifacts.stage(STAGE, profile_folder, config=config) as record,
        scratch_folder() as scratch,
        log_store.connect(scratch) as connection,
    ):
        problems, clock = Problems(), _Clock()
        record.inputs["data"] = data_digest
        source = sources.open(data)
        with clock.phase("read"):
            corpus = read(
                source, config, reference_start, newest_start, newest_end,
                connection=connection, scratch=scratch, problems=problems,
            )  # fmt: skip
        for problem in problems:
            progress.log_event(STAGE, "note", f"left out or odd: {problem.line()}")
        split = splits.split(corpus.judged.query, corpus.position, config)
        with progress.timed(STAGE, f"indexed {len(corpus.catalogue)} products"), clock.phase("index"):
            index = _index(corpus)
        with clock.phase("embed"):
            embedded = _embedded(corpus, config, scratch)
        tokens = TokenCounter(config.retriever.model)

        for output in (judgements, candidates, traffic):
            _clear(output)
        with clock.phase("traffic"):
            samples, basis = _sample_traffic(corpus, config)
            for name, sample in samples.items():
                _write_traffic(corpus, index, tokens, sample, traffic / f"{name}.parquet")
            artifacts.seal(traffic)
        with clock.phase("judged"):
            used = {side: _texts(corpus, split.queries[side]) for side in SIDES}
            splits.check_leaks(used, config)
            for side in SIDES:
                _write_judged(corpus, split.rows[side], index, judgements / f"{side}.parquet")
            protocol = _protocol(source, data, config, corpus, index, basis)
            twins = splits.near_duplicates({side: used[side] for side in ("train", "test")}, index.stem)["pairs"]
            protocol["near_duplicates"] = twins["test and train"] / max(len(used["test"]), 1)  # the gate has a limit
            artifacts.write_json(judgements / "protocol.json", protocol)
            artifacts.seal(judgements)
        with clock.phase("candidates"):
            miner = Miner(corpus, split, index, embedded, config)
            used["candidates"] = _texts(corpus, miner.queries)
            splits.check_leaks({"candidates": used["candidates"]}, config)
            tally = profile.CandidateStats(len(corpus.catalogue))
            shards = _write_candidates(corpus, miner, tokens, config.shards, candidates, tally)
            artifacts.seal(candidates)
        for name, seconds in miner.seconds.items():
            clock.seconds[f"candidates_{name}"] = round(seconds, 2)
        with clock.phase("profile"):
            near = splits.near_duplicates(used, index.stem)
            summary = {
                "source": data.model_dump(mode="json"),
                "data_digest": data_digest,
                "windows": {
                    "reference_start": reference_start,
                    "newest_start": newest_start,
                    "newest_end": newest_end,
                },
                **profile.describe(corpus, split, index, tally, tokens, problems, config),
                "near_duplicates": near,
                "shards": shards,
                "traffic": {"basis": basis, "rows": {name: len(sample.query) for name, sample in samples.items()}},
            }
            artifacts.write_json(profile_folder / "profile.json", summary)
            artifacts.write_text(profile_folder / "profile.html", profile_page.render(summary))
            artifacts.seal(profile_folder, only=["profile.json", "profile.html"])
        record.facts.update(
            splits=summary["splits"],
            candidates=tally.pairs,
            shards=len(shards),
            merged=corpus.merged,
            seconds=clock.seconds,
        )
        pairs = ", ".join(f"{side} {len(split.rows[side])}" for side in SIDES)
        progress.log_event(
            STAGE, "note", f"judged pairs: {pairs}; {tally.pairs} candidates of {len(miner.queries)} queries"
        )
        return [shard["name"] for shard in shards]


def sample_newest(
    config: Prepare,
    data: Data,
    *,
    reference_start: str,
    newest_start: str,
    newest_end: str,
    data_digest: str,
    traffic: Path,
) -> int:
    """Write the sample of the newest traffic that `prepare` would, and nothing else: what it takes to watch a champion.

    Args:
        traffic: folder for current.parquet; the others as for `prepare`, none of them empty.

    Returns:
        Its rows.

    Raises:
        InputError: the data is unusable, or a window is empty.
    """
    with artifacts.stage("sample", traffic, config=config) as record:
        record.inputs["data"] = data_digest
        _clear(traffic)
        with (
            scratch_folder() as scratch,
            log_store.connect(scratch) as connection,
        ):
            corpus = read(
                sources.open(data), config, reference_start, newest_start, newest_end,
                connection=connection, scratch=scratch, problems=Problems(),
            )  # fmt: skip
            samples, basis = _sample_traffic(corpus, config)
            newest = samples["current"]
            tokens = TokenCounter(config.retriever.model)
            _write_traffic(corpus, _index(corpus), tokens, newest, traffic / "current.parquet")
        artifacts.seal(traffic)
        record.facts.update(rows=len(newest.query), basis=basis)
        return len(newest.query)


def _texts(corpus: Corpus, places: np.ndarray) -> list[str]:
    return corpus.queries.take(pa.array(places)).to_pylist()


def _index(corpus: Corpus) -> bm25.Index:
    try:
        return bm25.Index(_product_texts(corpus), corpus.languages)
    except ValueError:
        raise InputError(f"catalogue: none of {len(corpus.catalogue)} products has a word in its title") from None


def _product_texts(corpus: Corpus) -> Iterator[str]:
    for start in range(0, len(corpus.catalogue), _ROWS):
        yield from corpus.catalogue.texts(np.arange(start, min(start + _ROWS, len(corpus.catalogue))))


def _embedded(corpus: Corpus, config: Prepare, scratch: Path) -> Embedded | None:
    """The catalogue as the embedding retriever sees it; with a store, embedded again only when it changes."""
    if not config.from_disagreement:
        return None
    knobs = config.retriever
    retriever = Retriever(knobs.model, max_tokens=knobs.max_tokens, precision=knobs.precision)
    content = hashlib.sha256()
    for text in _product_texts(corpus):
        content.update(text.encode() + b"\0")
    settings = [references.digest(knobs.model), knobs.max_tokens, knobs.precision]
    key = artifacts.digest_json([*settings, content.hexdigest()])
    folder = Path(config.log_cache_dir) if config.log_cache_dir else scratch
    path = folder / "vectors" / f"{key[:32]}.npy"
    if not path.exists():
        artifacts.remove_stale(path.parent)
        count, dtype = len(corpus.catalogue), np.dtype(np.float16)
        header = {"descr": dtype.str, "fortran_order": False, "shape": (count, retriever.dimension)}
        counter = progress.Counter(STAGE, count, "products embedded")
        with artifacts.replacing(path) as handle:
            np.lib.format.write_array_header_1_0(handle, header)
            for start in range(0, count, _ROWS):
                rows = np.arange(start, min(start + _ROWS, count))
                handle.write(retriever.embed(corpus.catalogue.texts(rows)).astype(dtype, copy=False).tobytes())
                counter.add(len(rows))
    return Embedded(retriever, Neighbors(np.load(path, mmap_mode="r")))


def _protocol(
    source: base.Source, data: Data, config: Prepare, corpus: Corpus, index: bm25.Index, basis: str
) -> dict[str, Any]:
    own = not np.array_equal(corpus.gains, corpus.targets)
    stems = "English" if index.languages == ("en",) else ", ".join(sorted(index.languages))
    return {
        "source": data.source,
        "rating_range": list(source.rating_range),
        "relevant_from": float(soft_targets(np.array([source.relevant_from]), source.rating_range)[0]),
        "split": {
            "by": "query in normal form, salted SHA-256",
            "salt": config.salt,
            "plurals": config.plurals,
            "dotless_i": config.language in normalize.DOTLESS,
            "dev_share": config.dev_share,
            "test_share": config.test_share,
            "draw": config.test_fold,
        },
        "ties": "broken by product id, ascending",
        "gain": "the source's own, linear" if own else "soft target, linear",
        "bm25": f"whole catalogue; title, product type, brand, color, gender; k1 1.2, b 0.75, {stems} stems",
        "strata": splits.CUT if corpus.logged else "there is no log: all queries are tail",
        "traffic": basis,
    }


# Traffic ----------------------------------------------------------------------------------------------------------


def _sample_traffic(corpus: Corpus, config: Prepare) -> tuple[dict[str, Impressions], str]:
    """The reference and current samples, and one line on what they are."""
    draw = np.random.default_rng([config.seed, 1])
    size = config.traffic_sample
    if corpus.timed:
        samples = {
            name: corpus.log.sample(newest, size, draw, corpus.stratum)
            for name, newest in (("reference", False), ("current", True))
        }
        for window, sample in zip(("training window", "newest traffic"), samples.values(), strict=True):
            if not len(sample.query):
                why = corpus.left_out or "; see `window` in the configuration"
                raise InputError(f"log: no impressions in the {window}, expected some{why}")
        return samples, "impressions of the training window against those of the newest traffic"
    # Both from one kind of pair: judged products differ from shown ones without any drift.
    held_out = corpus.side != TRAIN
    seen = corpus.impressions > 0
    sides = {"reference": ~held_out, "current": held_out}
    if all((seen & side).any() for side in sides.values()):
        samples = {
            name: corpus.log.sample(None, size, draw, corpus.stratum, np.flatnonzero(side))
            for name, side in sides.items()
        }
        return samples, f"{HELD_OUT}: the log has no time"
    samples = {}
    for name, side in sides.items():
        rows = np.flatnonzero(side[corpus.judged.query])
        pairs = corpus.judged.take(rows[systematic_sample(len(rows), size, draw)])
        untold = np.full(len(pairs.query), np.nan, np.float32)
        samples[name] = Impressions(pairs.query, pairs.product, position=untold, clicked=untold)
    return samples, f"{HELD_OUT}: there is no log"


# Writing ----------------------------------------------------------------------------------------------------------


def _clear(folder: Path) -> None:
    """Remove what an earlier attempt left: its seal first, so that no half-written folder looks complete."""
    (folder / artifacts.SEAL).unlink(missing_ok=True)
    for path in (*folder.glob("*.parquet"), *folder.glob(artifacts.PARTIAL)):
        path.unlink()


def _pair_columns(corpus: Corpus, pairs: Pairs) -> dict[str, Any]:
    rows = pa.array(pairs.query)
    return {
        "query_id": corpus.query_ids.take(rows),
        "query": corpus.queries.take(rows),
        **corpus.catalogue.take(pairs.product),
    }


def _names(codes: np.ndarray, names: Sequence[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), list(names)).cast(pa.string())


def _by_product_id(corpus: Corpus, pairs: Pairs) -> np.ndarray:
    """The order of rows by query, then product id; places of queries ascend with their ids."""
    keys = corpus.catalogue.column("product_id").take(pa.array(pairs.product))
    table = pa.table({"query": pairs.query, "product_id": keys})
    return pc.sort_indices(table, [("query", "ascending"), ("product_id", "ascending")]).to_numpy()


def _scores(index: bm25.Index, corpus: Corpus, pairs: Pairs) -> np.ndarray:
    queries, query = np.unique(pairs.query, return_inverse=True)
    return index.scores(_texts(corpus, queries), query, pairs.product)


def _write_judged(corpus: Corpus, rows: np.ndarray, index: bm25.Index, path: Path) -> None:
    rows = rows[_by_product_id(corpus, corpus.judged.take(rows))]
    with schemas.Writer(path, schemas.JUDGED) as writer:
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            pairs = corpus.judged.take(some)
            columns = {
                **_pair_columns(corpus, pairs),
                "target": corpus.targets[some],
                "gain": corpus.gains[some],
                "raters": corpus.raters[some],
                "locale": corpus.locales.take(pa.array(some)),
                "stratum": _names(corpus.stratum[pairs.query], STRATA),
                "bm25": _scores(index, corpus, pairs),
            }
            writer.write(pa.table(columns))


def _write_candidates(
    corpus: Corpus, miner: Miner, tokens: TokenCounter, most: int, folder: Path, tally: profile.CandidateStats
) -> list[dict[str, Any]]:
    """Mine and write the shards, queries one after the other, each to the shard with the fewest tokens so far."""
    count = max(min(most, len(miner.queries)), 1)
    balance = ShardBalancer(count)
    lengths = _Lengths(corpus, tokens)
    shards: list[dict[str, Any]] = [
        {"name": f"shard-{number:05d}", "rows": 0, "queries": 0, "tokens": 0} for number in range(count)
    ]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(schemas.Writer(folder / f"{shard['name']}.parquet", schemas.CANDIDATES))
            for shard in shards
        ]
        for mined in miner.mine():
            tally.add(mined)
            length = lengths.of(mined)
            place = balance.assign(mined.query, length)
            order = _by_product_id(corpus, mined)
            for number, (shard, writer) in enumerate(zip(shards, writers, strict=True)):
                rows = order[place[order] == number]
                shard["queries"] += len(np.unique(mined.query[rows]))
                shard["tokens"] += int(length[rows].sum())
                for start in range(0, len(rows), _ROWS):
                    some = rows[start : start + _ROWS]
                    writer.write(_candidate_rows(corpus, mined, some))
        for shard, writer in zip(shards, writers, strict=True):
            shard["rows"] = writer.rows
    empty = [shard for shard in shards if not shard["rows"]]  # fewer queries have candidates than there are shards
    for shard in empty:
        (folder / f"{shard['name']}.parquet").unlink()
    return [shard for shard in shards if shard["rows"]]


def _candidate_rows(corpus: Corpus, mined: Mined, rows: np.ndarray) -> pa.Table:
    pairs = mined.take(rows)
    return pa.table(
        {
            **_pair_columns(corpus, pairs),
            "provenance": _names(mined.provenance[rows], PROVENANCES),
            "impressions": mined.impressions[rows],
            "clicks": mined.clicks[rows],
            "stratum": _names(corpus.stratum[pairs.query], STRATA),
        }
    )


class _Lengths:
    """Tokens of pairs, estimated: what a shard costs to label.

    Counting the tokens of every text takes longer than finding the candidates, so characters are counted, and how many
    of them make a token is found from a sample.
    """

    def __init__(self, corpus: Corpus, tokens: TokenCounter) -> None:
        self.corpus = corpus
        count = len(corpus.catalogue)
        some = np.unique(np.linspace(0, count - 1, min(count, _COUNTED), dtype=np.int64))
        products = self._characters(some)
        texts = corpus.catalogue.texts(some)
        descriptions = pc.fill_null(corpus.catalogue.take(some)["description"], "").to_pylist()
        counted = tokens.count(texts) + np.minimum(tokens.count([text[:_SEEN] for text in descriptions]), _TOKENS_SEEN)
        self.per_character = float(counted.sum() / max(products.sum(), 1))
        self.known = np.full(count, -1, np.int32)

    def _characters(self, products: np.ndarray) -> np.ndarray:
        return self.corpus.catalogue.characters(products, longest=_SEEN)

    def of(self, pairs: Pairs) -> np.ndarray:
        """Tokens of query and product of each pair, int64, shape (pairs,)."""
        new = np.unique(pairs.product[self.known[pairs.product] < 0])
        self.known[new] = self._characters(new)
        queries, query = np.unique(pairs.query, return_inverse=True)
        typed = pc.utf8_length(self.corpus.queries.take(pa.array(queries))).to_numpy()
        return np.ceil((typed[query] + self.known[pairs.product]) * self.per_character).astype(np.int64)


def _write_traffic(corpus: Corpus, index: bm25.Index, tokens: TokenCounter, sample: Impressions, path: Path) -> None:
    queries, query = np.unique(sample.query, return_inverse=True)
    texts = _texts(corpus, queries)
    columns = _pair_columns(corpus, sample)
    clicks = sum(corpus.log.totals(newest)[1] for newest in (False, True))
    features = {
        "query_words": np.array([len(normalize.words(text)) for text in texts])[query],
        "query_characters": np.array([len(text) for text in texts])[query],
        "query_tokens": tokens.count(texts)[query],
        "unseen_words": np.array([index.unseen(text) for text in texts], np.float32)[query],
        "script": np.array([unicode_script.dominant(text) for text in texts], object)[query],
        "title_words": [len(normalize.words(title or "")) for title in columns["title"].to_pylist()],
        "bm25": _scores(index, corpus, sample),
        "position": pa.array(sample.position, from_pandas=True),
        "clicked": pa.array(sample.clicked if clicks else np.full_like(sample.clicked, np.nan), from_pandas=True),
    }
    schemas.write(pa.table({**columns, **features}), path, schemas.TRAFFIC)
