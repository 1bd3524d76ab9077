"""Problems of outside data: each kind once, with its number of rows and its first examples.

A run stops at the first fatal problem; `distilrank data check` collects them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from distilrank.core.errors import InputError

EXAMPLES = 5
"""Most examples of a problem."""


@dataclass(frozen=True)
class Problem:
    """One kind of problem in one place."""

    where: str
    """File, folder or table."""
    what: str
    """Description, with what was expected."""
    rows: int
    """Number of rows that have the problem."""
    examples: tuple[str, ...]
    """First examples, such as `row 7: rating is 'abc'`; at most EXAMPLES."""
    fatal: bool
    """Whether a run stops at the problem; otherwise the rows are left out and counted."""

    def line(self) -> str:
        """Return the problem as the one line of an InputError."""
        first = f"{self.examples[0]}, " if self.examples else ""
        more = f" ({self.rows} rows)" if self.rows > 1 else ""
        return f"{self.where}: {first}{self.what}{more}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"examples": list(self.examples)}


class Problems:
    """Problems in order of appearance; repetitions of a problem in one place are added up.

    Args:
        collect: continue after a fatal problem instead of raising it.
    """

    def __init__(self, *, collect: bool = False) -> None:
        self.collect = collect
        self._problems: dict[tuple[str, str], Problem] = {}

    def __iter__(self):
        return iter(self._problems.values())

    def __len__(self) -> int:
        return len(self._problems)

    @property
    def fatal(self) -> bool:
        """Whether a run would stop at one of the problems."""
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
        """Record that `rows` rows of `where` have a problem; 0 rows record nothing.

        Args:
            where: file, folder or table.
            what: description, with what was expected.
            rows: number of rows.
            examples: first rows, in words.
            fatal: whether a run stops at the problem.
            once: do not add up repetitions, for a check that finds the same rows each time.

        Raises:
            InputError: the problem is fatal, and problems are not collected.
        """
        if not rows or (once and (where, what) in self._problems):
            return
        before = self._problems.get((where, what))
        first_examples = (*(before.examples if before else ()), *examples)[:EXAMPLES]
        problem = Problem(where, what, rows + (before.rows if before else 0), first_examples, fatal)
        self._problems[where, what] = problem
        if fatal and not self.collect:
            raise InputError(problem.line())

    def discard(self, where: str, what: str) -> None:
        """Drop the problems of `where` whose description begins with `what`, such as those of a mere sample."""
        self._problems = {
            key: problem for key, problem in self._problems.items() if not (key[0] == where and key[1].startswith(what))
        }

    def extend(self, problems: Iterable[Problem], *, once: bool = False) -> None:
        """Add each of `problems` as `add` does."""
        for problem in problems:
            self.add(
                problem.where,
                problem.what,
                rows=problem.rows,
                examples=problem.examples,
                fatal=problem.fatal,
                once=once,
            )
