/* What build.sh links PyInstaller's bootloader with, beside the interpreter, for the plugins of a lean build: a module,
 * and less to do at the start. It leans on CPython's insides, as boot.py does; where it cannot be linked plugins do
 * without.
 */

#define _GNU_SOURCE
#include <Python.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

static PyObject *
enter_namespace(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    int fd, kind;

    if (!PyArg_ParseTuple(arguments, "ii:setns", &fd, &kind))
        return NULL;
    if (setns(fd, kind) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *
mount_apart(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    const char *kind;
    int fs, root = -1;

    if (!PyArg_ParseTuple(arguments, "s:mount", &kind))
        return NULL;
    fs = syscall(SYS_fsopen, kind, FSOPEN_CLOEXEC);
    if (fs >= 0 && syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        root = syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
    if (root < 0)
        PyErr_SetFromErrno(PyExc_OSError);
    if (fs >= 0)
        close(fs);
    return root < 0 ? NULL : PyLong_FromLong(root);
}

static PyObject *
complete(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arguments))
{
    PyStatus status = _Py_InitializeMain();

    if (PyStatus_Exception(status)) {
        PyErr_Format(PyExc_ImportError, "the interpreter cannot be completed: %s", status.err_msg);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"complete", complete, METH_NOARGS, "Start the interpreter's other half (see boot.py). Raises ImportError."},
    {"mount", mount_apart, METH_VARARGS, "mount(kind): see cnikit/effects/syscalls.py. Raises OSError."},
    {"setns", enter_namespace, METH_VARARGS, "setns(fd, kind): setns(2), os.setns of Python 3.12. Raises OSError."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_bootloader", .m_methods = functions};

static PyObject *
new_module(void)
{
    return PyModule_Create(&definition);
}

/* Before main. */
__attribute__((constructor)) static void
prepare(void)
{
    signal(SIGPIPE, SIG_IGN); /* as the interpreter's other half would */
    signal(SIGXFSZ, SIG_IGN); /* the same: a file that becomes too long is an error to tell */
    signal(SIGCHLD, SIG_DFL); /* who ignores it, as a caller may, cannot wait for children */
    PyImport_AppendInittab("_bootloader", new_module);
}

/* What the linker (--wrap) puts in the place of two functions of CPython's. */

int __wrap__Py_Deepfreeze_Init(void);
PyStatus __wrap__PyGC_Init(PyInterpreterState *);
PyStatus __real__PyGC_Init(PyInterpreterState *);

/* Do not intern the strings of all frozen modules, most of which no plugin imports. It is for speed alone (names that
 * are not interned are compared letter by letter), and would write to 180 pages, a copy and a fault each. */
int
__wrap__Py_Deepfreeze_Init(void)
{
    return 0;
}

/* Collect no garbage while the interpreter and its types are made, as boot.py sees to later. */
PyStatus
__wrap__PyGC_Init(PyInterpreterState *interpreter)
{
    PyStatus status = __real__PyGC_Init(interpreter);

    PyGC_Disable();
    return status;
}
