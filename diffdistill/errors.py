"""The one error a user is meant to read."""


class UserError(Exception):
    """Bad input: the message is one line, says what was wrong and what would be right; the exit code is 2."""
