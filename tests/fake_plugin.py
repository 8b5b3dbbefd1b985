"""A CNI plugin that does what a JSON file tells it, and records what it was given; and a folder of such plugins.

As an executable this file stands under any name in a folder of plugins, beside two files:

    script.json   {"NAME VERB": {"stdout": ..., "stderr": "...", "status": 1}}, each key optional; stdout is text, or
                  a value that is printed as JSON. {"NAME VERB": {"signal": 9}} ends it by that signal.
    calls.jsonl   one line a call: plugin, verb, env (the whole of it), stdin (decoded)

What the script does not mention succeeds: ADD prints prevResult with an interface more, named like the plugin; VERSION
prints three versions; the rest prints nothing.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


class FakePlugins:
    """Fake plugins in a folder of their own, for a test to script, and to read what they were given."""

    def __init__(self, folder: Path, *names: str) -> None:
        folder.mkdir()
        self.folder = folder
        with open(__file__, encoding="utf-8") as source:
            # Bare of site-packages, a start takes a tenth of the time.
            script = f"#!{os.path.realpath(sys.executable)} -IS\n{source.read()}"
        for name in names:
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        self.script({})

    def script(self, told: dict[str, dict[str, Any]]) -> None:
        """Tell plugins what to do, by "NAME VERB"."""
        (self.folder / "script.json").write_text(json.dumps(told))

    def calls(self) -> list[dict[str, Any]]:
        """Return what the plugins were given since the last time, in order."""
        record = self.folder / "calls.jsonl"
        lines = record.read_text().splitlines() if record.exists() else []
        record.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def called(self) -> list[str]:
        """Return who was called for what since the last time, as "NAME VERB"."""
        return [f"{call['plugin']} {call['verb']}" for call in self.calls()]


def _answer(name: str, verb: str, config: dict[str, object]) -> object:
    if verb == "VERSION":
        return {"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}
    if verb != "ADD":
        return ""
    previous = config.get("prevResult", {})
    assert isinstance(previous, dict)
    interfaces = [*previous.get("interfaces", []), {"name": name}]
    return {"cniVersion": config["cniVersion"], **previous, "interfaces": interfaces}


def _serve() -> int:
    folder, name = os.path.split(os.path.abspath(sys.argv[0]))
    verb = os.environ["CNI_COMMAND"]
    stdin = json.load(sys.stdin)
    with open(f"{folder}/calls.jsonl", "a", encoding="utf-8") as calls:
        call = {"plugin": name, "verb": verb, "env": dict(os.environ), "stdin": stdin}
        calls.write(json.dumps(call) + "\n")
    with open(f"{folder}/script.json", encoding="utf-8") as script:
        told = json.load(script).get(f"{name} {verb}", {})
    if "signal" in told:
        os.kill(os.getpid(), told["signal"])
    stdout = told.get("stdout", "" if told.get("status") else _answer(name, verb, stdin))
    sys.stdout.write(stdout if isinstance(stdout, str) else json.dumps(stdout))
    sys.stderr.write(told.get("stderr", ""))
    return int(told.get("status", 0))


if __name__ == "__main__":
    sys.exit(_serve())
