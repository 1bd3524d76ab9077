"""The two ways in which a run ends early on purpose."""


class InputError(Exception):
    """Bad input or configuration: one clear line, exit status 2.

    The message names the file, row, field or key, the value seen and what was expected.
    """


class RunStopped(Exception):
    """The run must not go on (a teacher not worth labeling with, say): exit status 1, nothing half-written."""
