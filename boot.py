"""The first script of a lean executable: readies the interpreter for the second one, the plugin.

The bootloader that build.sh makes starts the interpreter's core only: built-in modules, and their importer. The other
half of a start (looking for files, codecs, streams, signals) takes a fifth of a call and no plugin needs it before
something is wrong. So what a plugin needs is found here, and whatever else it imports completes the interpreter first.
PyInstaller's own bootloader has started all of it; then this finds the same modules sooner.
"""

import _imp
import builtins
import gc
import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec


class Module(type(sys)):
    """A module whose attributes are looked up like any object's: `from` asks each for a __path__ first.

    In an ordinary module, what is not there becomes an exception, with its text, before it is forgotten.
    """

    __getattribute__ = object.__getattribute__


# A text that is no UTF-8 has the interpreter import these, and while it does so it cannot be completed.
CODECS = ("codecs", "encodings", "encodings.aliases", "encodings.utf_8")


class Held:
    """Finds and loads extension modules, which executables.spec has listed, and modules of ours imported later."""

    @staticmethod
    def find_spec(name, path, target=None):
        """Return the specification of a module held here; for any other see that the interpreter looks for files."""
        if name in extensions:
            return ModuleSpec(name, Held, origin=f"{sys.prefix}/{extensions[name]}")
        if name in CODECS or (modules and name.startswith("cnikit.")):
            spec = ModuleSpec(name, Held)
            folder = f"{sys.prefix}/{place(name)}"
            if posix.access(folder, posix.F_OK):
                spec.submodule_search_locations = [folder]
            return spec
        if sys.meta_path[-1] is Held:
            import _bootloader

            _bootloader.complete()  # puts the importer for files behind this one, where it is asked next
        return None

    @staticmethod
    def create_module(spec):
        """Return a new module, None for an ordinary one."""
        return _imp.create_dynamic(spec) if spec.origin else None

    @staticmethod
    def exec_module(module):
        """Fill a new module."""
        if module.__spec__.origin:
            _imp.exec_dynamic(module)
        else:
            package = module.__spec__.submodule_search_locations is not None
            code = read(f"{place(module.__name__)}{'/__init__' if package else ''}.pyc")[16:]  # behind the header
            exec(marshal.loads(code), module.__dict__)


def place(name):
    """Return where in the runtime folder a module is, without what is behind the dot, or a package."""
    return name.replace(".", "/")


def read(name):
    """Return what is in a file of the runtime folder."""
    try:
        fd = posix.open(f"{sys.prefix}/{name}", posix.O_RDONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        raise ModuleNotFoundError(name) from None
    try:
        return posix.read(fd, posix.fstat(fd).st_size)
    finally:
        posix.close(fd)


__builtins__ = builtins  # C code that imports looks here for how
gc.disable()  # garbage has no time to gather in a process this short
sys.frozen = True
sys.prefix = sys._MEIPASS
try:
    held = read("NAME.modules")  # executables.spec puts the name
except (ModuleNotFoundError, OSError):
    # The folder's name begins with a dot, so who copies by hand easily forgets it.
    fault = f"cannot read {sys.prefix.rpartition('/')[2]}/NAME.modules in the folder of the executable"
    hint = "copy the folder too, or use ./build.sh install"
    posix.write(1, f'{{"cniVersion": "1.1.0", "code": 5, "msg": "{fault}", "details": "{hint}"}}\n'.encode())
    posix._exit(1)
extensions, modules = marshal.loads(held)
# Before the importer for files, if there is one already.
sys.meta_path.insert(2, Held)
for name, package, code in modules:
    sys.modules[name] = module = Module(name)
    module.__spec__ = ModuleSpec(name, Held)
    module.__spec__._initializing = False  # every import asks, and what is not there would become an exception
    if package:
        module.__path__ = [sys.prefix + package]
    exec(code, module.__dict__)
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)
