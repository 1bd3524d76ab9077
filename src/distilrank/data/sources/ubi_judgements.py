"""Judgement lists of OpenSearch's Search Relevance Workbench."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from distilrank.core import normalize
from distilrank.core.errors import InputError
from distilrank.core.problems import Problems
from distilrank.data.sources.reading import File
from distilrank.data.sources.rows import Rows
from distilrank.data.sources.storage import StoredFile
from distilrank.data.sources.ubi_lines import GZIP, json_type, list_keys, quote

LIST_SUFFIXES = (".json", ".json.gz")
"""Suffixes of judgement lists."""


def is_judgement_list(stored: StoredFile) -> bool:
    if stored.name.lower().endswith(LIST_SUFFIXES):
        return True
    with contextlib.suppress(OSError, zlib.error), stored.open_ranges() as handle:
        head = handle.read(1 << 10)
        if head.startswith(GZIP):
            head = zlib.decompressobj(31).decompress(head)
        return head.lstrip().startswith(b"{")
    return False


class JudgementList(File):
    """A judgement list of the Search Relevance Workbench; each rating is a row, numbered from 1 over all queries.

    It is one JSON value: {"judgmentRatings": [{"query": "...", "ratings": [{"docId": "...", "rating": "100.000"}]}]}.
    """

    def __init__(self, stored: StoredFile, rating_range: tuple[float, float]) -> None:
        super().__init__(stored, {"query": "query", "product_id": "docId", "rating": "rating"})
        self.rating_range = rating_range

    def _queries(self) -> list[Any]:
        """The entries of the list, one per query, unchecked.

        Raises:
            InputError: the file is not such a list.
        """
        with self._readable(), self.stored.open_local() as path:
            text = path.read_bytes()
            if text.startswith(GZIP):
                text = gzip.decompress(text)
        try:
            value = json.loads(text)
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.name}: not UTF-8 at byte {error.start + 1}") from None
        except UnicodeEncodeError:
            raise InputError(f"{self.name}: not JSON (half of a surrogate pair)") from None
        except json.JSONDecodeError as error:
            raise InputError(f"{self.name}: not JSON ({error})") from None
        except ValueError:  # Python refuses numbers of more than 4300 digits
            raise InputError(f"{self.name}: not JSON (a number has too many digits)") from None
        except RecursionError:
            raise InputError(f"{self.name}: not JSON (nested too deeply)") from None
        queries = value.get("judgmentRatings") if isinstance(value, dict) else None
        if not isinstance(queries, list) or not queries:
            content = list_keys(value) if isinstance(value, dict) else json_type(value)
            raise InputError(f"{self.name}: has {content}, expected an object with queries in judgmentRatings")
        return queries

    def check(self, problems: Problems | None = None) -> bool:
        problems = Problems() if problems is None else problems
        try:
            self._queries()
        except InputError as error:
            self.complain(problems, error)
            return False
        return True

    def batches(self, problems: Problems, *, lenient: Collection[str] = (), ranges: bool = False) -> Iterator[Rows]:
        try:
            queries = self._queries()
        except InputError as error:
            self.complain(problems, error)
            return
        good: list[tuple[int, str, str, float]] = []
        row = 0
        for number, each in enumerate(queries, 1):
            query, ratings = (each.get("query"), each.get("ratings")) if isinstance(each, dict) else (None, None)
            if not isinstance(query, str) or normalize.is_blank(query):
                self._complain_of(f"query {number}: query", query, "a query", problems)
                continue
            if not isinstance(ratings, list):
                self._complain_of(f"query {number}: ratings", ratings, "a list", problems)
                continue
            for rating_number, rated in enumerate(ratings, 1):
                row += 1
                where = f"query {number}, rating {rating_number}"
                product, text = (rated.get("docId"), rated.get("rating")) if isinstance(rated, dict) else (None, None)
                rating = _number(text)
                lowest, highest = self.rating_range
                if not isinstance(product, str | int) or isinstance(product, bool) or not str(product).strip():
                    self._complain_of(f"{where}: docId", product, "a product id", problems)
                elif rating is None or not lowest <= rating <= highest:
                    self._complain_of(f"{where}: rating", text, f"a number from {lowest:g} to {highest:g}", problems)
                else:
                    good.append((row, query, str(product), rating))
        rows = Rows(self, np.array([each[0] for each in good], np.int64), problems, lenient)
        rows.set_column("query", pa.array([each[1] for each in good], pa.string()))
        rows.set_column("product_id", pa.array([each[2] for each in good], pa.string()))
        rows.set_column("rating", pa.array([each[3] for each in good], pa.float64()))
        yield rows

    def _complain_of(self, where: str, value: Any, expected: str, problems: Problems) -> None:
        if value is None or value == "":
            content = "empty"
        elif isinstance(value, dict | list):  # as deep as it likes
            content = json_type(value)
        else:
            content = quote(str(value))
        problems.add(self.name, f"expected {expected}", examples=[f"{where} is {content}"])


def _number(value: Any) -> float | None:
    """Parse a finite number, given as a number or as text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    with contextlib.suppress(ValueError, OverflowError):
        number = float(value)
        return number if math.isfinite(number) else None
    return None
