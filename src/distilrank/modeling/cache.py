"""A bounded memory of what was computed before, oldest use first out."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Cache(Generic[Key, Value]):
    """Values by key, at most `size` of them; may be used from several threads.

    `hits` and `misses` count keys since the start.
    """

    def __init__(self, size: int) -> None:
        self.size, self.hits, self.misses = size, 0, 0
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, keys: Sequence[Key], make: Callable[[list[Key]], Sequence[Value]]) -> list[Value]:
        """The values of different `keys`; those that are not there are made together by `make`, in the keys' order."""
        with self._lock:
            found = {key: self._values[key] for key in keys if key in self._values}
            for key in found:
                self._values.move_to_end(key)
            missing = [key for key in keys if key not in found]
            self.hits += len(found)
            self.misses += len(missing)
        if missing:
            made = dict(zip(missing, make(missing), strict=True))
            found |= made
            with self._lock:
                self._values |= made
                while len(self._values) > self.size:
                    self._values.popitem(last=False)
        return [found[key] for key in keys]
