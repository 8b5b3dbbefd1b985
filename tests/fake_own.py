"""Fake plugins of this suite: fake executables, and fake modules for `cnitool repair`, which runs no executable."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from cnikit.effects import notes
from cnikit.errors import CniError
from cnikit.plugin import Plugin
from cnikit.request import Request
from cnikit.result import Result
from tests.fake_plugin import FakePlugins


class Ours:
    """Makes fake plugins look like ours, and records what they are asked for in this process.

    missing: what the next repair of a plugin puts back, by name. faults: what they raise, by "NAME VERB".
    notes: what they say beside it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, plugins: FakePlugins, *names: str) -> None:
        self.asked: list[tuple[str, str, Request]] = []
        self.missing: dict[str, tuple[str, ...]] = {}
        self.faults: dict[str, CniError] = {}
        self.notes: dict[str, str] = {}
        runtime = plugins.folder / ".cnikit-1.0"
        runtime.mkdir()
        sizes = [f"{name} {(plugins.folder / name).stat().st_size}\n" for name in names]
        (runtime / "executables").write_text("".join(sizes))
        for name in names:
            monkeypatch.setitem(sys.modules, f"cnikit.plugins.{name}", SimpleNamespace(PLUGIN=self._plugin(name)))

    def _plugin(self, name: str) -> Plugin:
        def check(request: Request) -> None:
            self._serve(name, "check", request)

        def repair(request: Request) -> tuple[str, ...]:
            self._serve(name, "repair", request)
            return self.missing.pop(name, ())

        def never(_: Request) -> None:
            pytest.fail("only repair and check are for this process")

        return Plugin(name, lambda _: Result(), never, check, never, never, repair)

    def _serve(self, name: str, verb: str, request: Request) -> None:
        self.asked.append((name, verb, request))
        if line := self.notes.get(f"{name} {verb}"):
            notes.say(line)
        if fault := self.faults.get(f"{name} {verb}"):
            raise fault

    def called(self) -> list[str]:
        """Return who was asked for what since the last time."""
        called = [f"{name} {verb}" for name, verb, _ in self.asked]
        self.asked.clear()
        return called
