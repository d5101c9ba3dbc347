"""The frame of an HTML page: one file that loads nothing from elsewhere."""

from __future__ import annotations

from html import escape

from diffdistill import __version__
from diffdistill.evaluation.page.style import SCRIPT, STYLE, policy


def document(
    title: str,
    header: str,
    main: str,
    command: str,
    *,
    style: str = "",
    script: str = SCRIPT,
    images: str = "data:",
    data: str = "",
) -> str:
    """A page with the common style.

    Args:
        title: plain text; it is escaped.
        header: HTML below the title.
        main: HTML of the sections.
        command: the command that made the page, plain text.
        style: CSS beside the common one.
        script: the only script that the page runs.
        images: where images may come from, see `policy`.
        data: HTML of scripts that only hold data, before the script.
    """
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy(script, images)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="diffdistill {__version__}">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>
{header}</header>
<main>
{main}</main>
<footer><p class="soft">Made by <code>{escape(command)}</code>, version {__version__}.</p></footer>
{data}<script>{script}</script>
</body>
</html>
"""
