"""The one error a user is meant to read."""


class UserError(Exception):
    """Bad input: the message is one line, says what was wrong and what would be right; the exit code is 2."""


def shown(value: object) -> str:
    """A value as an error names it: in one short line, or else by its type.

    >>> shown(0.5), shown([0] * 99)
    ('0.5', 'a list')
    """
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text and not text.startswith("<") else f"a {type(value).__name__}"
