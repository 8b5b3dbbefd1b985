"""Plans: what a plugin wants done, as values; and the engine that applies, undoes, verifies and renders them.

A plan is a tuple of steps, each a verb and an object:

    Ensure   shared with others: make it so where it is not; never undone
    Add      must not exist before; undone when a later step fails
    Set      adjusts what an Add made, and goes with it
    Del      taken away; already gone is fine

From these come, once for all plugins, the roll-back of a failed ADD, CHECK (verify the plan rebuilt from prevResult)
and the command lines an engineer would type.
"""

from __future__ import annotations

from posix import strerror

from cnikit import spec
from cnikit.errors import CniError
from cnikit.objects import CONTAINER, HOST, Change, Make, Object, Remove, Sysctl
from cnikit.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cnikit.objects import Refusal, World

EEXIST, ECANCELED = 17, 125

# How often what is shared is made when somebody takes it away again: by flushing the ruleset, say.
_TRIES = 3


class Step(Value):
    """A verb and its object."""

    what: Object

    def change(self) -> Change:
        """Return the change it is where nothing needs to be looked at: in a clean-up."""
        return Make(self.what)


class Ensure(Step):
    """Make it so where it is not."""


class Add(Step):
    """Create it."""


class Set(Step):
    """Adjust what an Add made."""


class Del(Step):
    """Take it away."""

    def change(self) -> Change:
        """Return the change it is."""
        return Remove(self.what)


def preflight(plan: Iterable[Step], world: World) -> None:
    """Raise the first conflict of what the plan would make with what is there. Changes nothing."""
    for step in plan:
        if not isinstance(step, Del):
            _refuse_conflict(step.what, world)


def _refuse_conflict(what: Object, world: World) -> None:
    conflict = what.conflict(world)
    if conflict:
        raise conflict


def refuse_impossible(plan: Iterable[Step], world: World) -> None:
    """Raise CniError (50) for what cannot be made on this host as it is. Changes nothing."""
    for step in plan:
        fault = None if isinstance(step, Del) else step.what.impossible(world)
        if fault:
            raise CniError(spec.UNAVAILABLE, fault.msg, fault.details)


def apply(plan: Sequence[Step], world: World) -> list[Object]:
    """Do the plan in order. When a step fails everything added is taken away again, and CniError raised.

    Return what was added, for undo(). Neighbouring steps in one namespace travel together; an Ensure looks first, so it
    goes alone.
    """
    added: list[Object] = []
    try:
        for steps in _runs(plan, lambda step: (step.what.where, isinstance(step, Ensure))):
            if isinstance(steps[0], Ensure):
                for step in steps:
                    _ensure(step.what, world)
            else:
                _do(steps, world, added)
    except BaseException as e:
        undo(added, world, e)
        raise
    return added


def _runs(plan: Iterable[Step], key: Callable[[Step], object]) -> Iterator[list[Step]]:
    """Split a plan where the key changes."""
    together: list[Step] = []
    for step in plan:
        if together and key(step) != key(together[-1]):
            yield together
            together = []
        together.append(step)
    if together:
        yield together


def _ensure(what: Object, world: World) -> None:
    fault = what.fault(world)
    for _ in range(_TRIES):
        if not fault:
            return
        _refuse_conflict(what, world)
        changes = what.changes(world)
        for change, refusal in zip(changes, world[what.where].change(changes), strict=False):
            # Somebody else may have made it since we looked.
            if refusal and (refusal.errno != EEXIST or not what.is_checked(world)):
                raise refused(change, refusal)
        _refuse_conflict(what, world)
        fault = "" if _is_optional(what) or not what.is_checked(world) else what.fault(world)
    if fault:
        raise CniError(spec.KERNEL_REFUSED, f"{_command(Make(what))}: was done, and yet {fault}")


def _is_optional(what: Object) -> bool:
    return isinstance(what, Sysctl) and what.optional


def _do(steps: list[Step], world: World, added: list[Object]) -> None:
    doing = [(step, change) for step in steps for change in _changes(step, world)]
    try:
        refusals = world[steps[0].what.where].change([change for _, change in doing])
    except BaseException:
        # No answer says what was done.
        added += [step.what for step in steps if isinstance(step, Add) and _is_there(step.what, world)]
        raise
    failed: list[CniError] = []
    for (step, change), refusal in zip(doing, refusals, strict=False):
        if refusal is None:
            if isinstance(step, Add) and isinstance(change, Make):
                added.append(step.what)
        elif refusal.errno != ECANCELED:
            failed.append(_reason(change, refusal, world))
    if failed:
        raise failed[0]


def _is_there(what: Object, world: World) -> bool:
    """Tell whether it is as we would have made it: what is another's is not."""
    try:
        return not what.fault(world)
    except CniError:
        return False  # Who cannot look could not undo it either, and what failed first is the error to tell.


def _changes(step: Step, world: World) -> Sequence[Change]:
    return (Remove(step.what),) if isinstance(step, Del) else step.what.changes(world)


def _reason(change: Change, refusal: Refusal, world: World) -> CniError:
    """Return why a change failed: what has come into its place since we looked, what is full, or the kernel's words."""
    what = change.what
    conflict = what.conflict(world) if refusal.errno == EEXIST else what.explained(refusal.errno, world)
    return conflict or refused(change, refusal)


def undo(added: list[Object], world: World, cause: BaseException) -> None:
    """Take away what was added, last first; the error that is the cause says what could not be."""
    faults = [fault for what in reversed(added) for fault in _undone(what, world)]
    if isinstance(cause, CniError):
        cause.details = "; ".join(filter(None, (cause.details, *(f"not undone: {fault.msg}" for fault in faults))))


def _undone(what: Object, world: World) -> list[CniError]:
    try:
        changes = what.removals(world)
    except CniError as e:
        return [e]
    return _cleared(changes, world)


def _cleared(changes: Sequence[Change], world: World) -> list[CniError]:
    """Do changes of a clean-up, as one transaction where that can be; return what went wrong."""
    if len(changes) > 1 and _done(changes, world):
        return []
    return [fault for change in changes for fault in _tried(change, world)]


def _tried(change: Change, world: World) -> list[CniError]:
    """Do a change of a clean-up; return what went wrong, if anything."""
    try:
        refusals = world[change.what.where].change((change,))
    except CniError as e:
        return [CniError(e.code, f"{_command(change)}: {e.msg}", e.details)]
    return [refused(change, refusal) for refusal in refusals if refusal]


def clear(listings: Iterable[Callable[[], Iterable[Step]]], world: World) -> list[CniError]:
    """Do the clean-up that each of these lists, and return what went wrong.

    What cannot be listed keeps nothing else from being taken away.
    """
    faults: list[CniError] = []
    for listed in listings:
        try:
            faults += remove(listed(), world)
        except CniError as e:
            faults.append(e)
    return faults


def remove(plan: Iterable[Step], world: World) -> list[CniError]:
    """Do a clean-up to its end; return what went wrong.

    What can be one transaction is; when that fails, each is tried by itself.
    """
    faults: list[CniError] = []
    for steps in _runs(plan, lambda step: step.what.transaction or id(step)):
        faults += _cleared([step.change() for step in steps], world)
    return faults


def _done(changes: Sequence[Change], world: World) -> bool:
    try:
        return not any(world[changes[0].what.where].change(changes))
    except CniError:
        return False


def mend(plan: Iterable[Step], world: World) -> tuple[str, ...]:
    """Put back what the plan made and is gone, interfaces and what is in the container excepted.

    Return the command lines of what was put back. Raises CniError.
    """
    done: list[str] = []
    for step in plan:
        what = step.what
        wanting = what.mendable and what.where == HOST and not _is_optional(what)
        if wanting and (isinstance(step, Del) or what.fault(world)):
            _do([step], world, [])
            done.append(what.removal() if isinstance(step, Del) else what.command())
    return tuple(done)


def refused(change: Change, refusal: Refusal) -> CniError:
    """Return the error for a change the kernel did not make: the command line, and why."""
    words = f"{strerror(refusal.errno)} ({refusal.why})" if refusal.why else strerror(refusal.errno)
    why = words if refusal.errno else refusal.why
    where = " in the container" if change.what.where == CONTAINER else ""
    return CniError(spec.KERNEL_REFUSED, f"{_command(change)}: {why}{where}")


def _command(change: Change) -> str:
    """Return the command line of a change, without the lines it gives to a program."""
    command = change.what.removal() if isinstance(change, Remove) else change.what.command()
    return command.partition("\n")[0]


def verify(plan: Iterable[Step], world: World) -> list[str]:
    """Return what the kernel does not have as the plan made it."""
    wanted = (step.what for step in plan if not isinstance(step, Del))
    faults = [what.fault(world) for what in wanted if not _is_optional(what) and what.is_checked(world)]
    return list(dict.fromkeys(fault for fault in faults if fault))


def render(plan: Iterable[Step], sandbox: str) -> str:
    """Return the plan as command lines, those for the container with nsenter into its netns path."""
    lines = []
    for step in plan:
        command = step.what.removal() if isinstance(step, Del) else step.what.command()
        inside = step.what.where == CONTAINER and not command.startswith("#")
        lines.append(f"nsenter --net={spec.word(sandbox)} {command}" if inside else command)
    return "".join(line + "\n" for line in lines)
