"""Errors with a code of the specification, a message that names the culprit, and details that say what to do."""

from __future__ import annotations

from cnikit import spec


def printable(text: str) -> str:
    """Return text as one line that does nothing to a terminal: what is not to be printed is written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in text)


class CniError(Exception):
    """What a runtime is told when a verb fails (specification section 5, "Error")."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(code, msg, details)
        self.code = code
        self.msg = msg
        self.details = details

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.msg} ({self.details})" if self.details else self.msg

    def document(self, version: str) -> dict[str, object]:
        """Return the error object of the specification."""
        shown: dict[str, object] = {"cniVersion": version, "code": self.code, "msg": printable(self.msg)}
        return {**shown, "details": printable(self.details)} if self.details else shown


def invalid_config(path: str, why: str, details: str = "") -> CniError:
    """Code 7: the configuration's key at path is wrong."""
    return CniError(spec.INVALID_CONFIG, f"{path}: {why}", details)


def invalid_environment(variable: str, why: str, details: str = "") -> CniError:
    """Code 4: an environment variable is wrong; the specification wants it named."""
    return CniError(spec.INVALID_ENVIRONMENT, f"{variable}: {why}", details)


def unsupported(path: str, value: object) -> CniError:
    """Code 2: a key this plugin knows and does not serve; "must contain the key and value"."""
    return CniError(spec.UNSUPPORTED_FIELD, f"{path}: {value!r} is not supported")


def collected(faults: list[CniError], doing: str) -> CniError:
    """Make one error of all that went wrong while a clean-up went on; a single one keeps its code."""
    if len(faults) == 1:
        return faults[0]
    return CniError(spec.CLEANUP_INCOMPLETE, f"{doing}: {len(faults)} faults", "; ".join(map(str, faults)))
