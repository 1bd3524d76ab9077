"""The two errors that end a run on purpose, and the one-line form of any error."""


class InputError(Exception):
    """Bad input or configuration: one clear line, exit status 2.

    The message names the file, row, field or key, the value seen and the value expected.
    """


class RunStopped(Exception):
    """A run that must not continue, for example because the teacher is too weak: exit status 1."""


def one_line(error: object, limit: int | None = 200) -> str:
    """Return the message of an error, or any text, on one line.

    Args:
        error: an exception or a text.
        limit: most characters; None: all of them.
    """
    return " ".join(str(error).split())[:limit]
