"""The one error class that the command line shows without a traceback."""


class HomeostatError(Exception):
    """Something the user can mend; the message says what was wrong, what is allowed and the fix."""
