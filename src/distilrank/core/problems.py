"""What is wrong with outside data: every kind of problem once, with how often it occurs and where it was first seen.

A run stops at the first fatal problem; `distilrank data check` collects them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from distilrank.core.errors import InputError

EXAMPLES = 5
"""Examples that are kept of each problem."""


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one place."""

    where: str
    """File, folder or table."""
    what: str
    """In words, with what was expected."""
    rows: int
    """How many rows have it."""
    examples: tuple[str, ...]
    """The first of them: `row 7: rating is 'abc'`; at most EXAMPLES."""
    fatal: bool
    """Whether a run stops at it; if not, the rows are left out and counted."""

    def line(self) -> str:
        """The problem as the one line of an InputError."""
        first = f"{self.examples[0]}, " if self.examples else ""
        more = f" ({self.rows} rows)" if self.rows > 1 else ""
        return f"{self.where}: {first}{self.what}{more}"

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `Problem(**value)` undoes it but for the examples being a list."""
        return asdict(self) | {"examples": list(self.examples)}


class Problems:
    """The problems found so far, in order of appearance; the same problem in the same place adds up.

    Args:
        collect: go on after a fatal problem instead of raising it.
    """

    def __init__(self, *, collect: bool = False) -> None:
        self.collect = collect
        self._found: dict[tuple[str, str], Problem] = {}

    def __iter__(self):
        return iter(self._found.values())

    def __len__(self) -> int:
        return len(self._found)

    @property
    def fatal(self) -> bool:
        """Whether a run would stop."""
        return any(problem.fatal for problem in self)

    def add(
        self,
        where: str,
        what: str,
        *,
        rows: int = 1,
        examples: Iterable[str] = (),
        fatal: bool = True,
        once: bool = False,
    ) -> None:
        """Note that `rows` rows of `where` have a problem; none if `rows` is 0.

        Args:
            once: the same problem does not add up, since each look at `where` finds it again.

        Raises:
            InputError: the problem is fatal, and problems are not collected.
        """
        if not rows or (once and (where, what) in self._found):
            return
        before = self._found.get((where, what))
        kept = (*(before.examples if before else ()), *examples)[:EXAMPLES]
        problem = Problem(where, what, rows + (before.rows if before else 0), kept, fatal)
        self._found[where, what] = problem
        if fatal and not self.collect:
            raise InputError(problem.line())

    def discard(self, where: str, what: str) -> None:
        """Forget the problems of `where` that begin with `what`: in a sample, they say nothing of the whole."""
        self._found = {
            key: problem for key, problem in self._found.items() if not (key[0] == where and key[1].startswith(what))
        }

    def extend(self, problems: Iterable[Problem], *, once: bool = False) -> None:
        """Add each of `problems`, as `add` does."""
        for problem in problems:
            self.add(
                problem.where,
                problem.what,
                rows=problem.rows,
                examples=problem.examples,
                fatal=problem.fatal,
                once=once,
            )
