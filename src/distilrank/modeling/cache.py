"""A thread-safe LRU cache that computes the missing values of a batch together."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Cache(Generic[Key, Value]):
    """Values by key, at most `size` of them; the least recently used ones are evicted. Safe between threads.

    Attributes:
        hits, misses: number of keys since the cache was created.

    Example:
        >>> cache = Cache(2)
        >>> cache.get(["a", "b"], lambda missing: [key.upper() for key in missing])
        ['A', 'B']
        >>> cache.get(["b", "c"], lambda missing: [key.upper() for key in missing]), cache.hits, cache.misses
        (['B', 'C'], 1, 3)
    """

    def __init__(self, size: int) -> None:
        self.size, self.hits, self.misses = size, 0, 0
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, keys: Sequence[Key], make: Callable[[list[Key]], Sequence[Value]]) -> list[Value]:
        """The values of distinct `keys`; `make` computes the missing ones together, in their order."""
        with self._lock:
            values = {key: self._values[key] for key in keys if key in self._values}
            for key in values:
                self._values.move_to_end(key)
            missing = [key for key in keys if key not in values]
            self.hits += len(values)
            self.misses += len(missing)
        if missing:
            computed = dict(zip(missing, make(missing), strict=True))
            values |= computed
            with self._lock:
                self._values |= computed
                while len(self._values) > self.size:
                    self._values.popitem(last=False)
        return [values[key] for key in keys]
