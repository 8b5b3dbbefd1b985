"""Lines for stderr that are no error: a configuration that is probably not what was meant, a setting that was changed.

They are kept until the answer is on stdout, and main writes them then, however the verb ended.
"""

from __future__ import annotations

_said: list[str] = []


def say(text: str) -> None:
    """Have a line on stderr, behind the plugin's name; a line that is there already is not repeated."""
    line = text if text.isprintable() else repr(text)[1:-1]  # names come from outside
    if line not in _said:
        _said.append(line)


def take(name: str) -> str:
    """Return the lines said so far, behind a plugin's name, and forget them."""
    lines = "".join(f"{name}: {line}\n" for line in _said)
    _said.clear()
    return lines
