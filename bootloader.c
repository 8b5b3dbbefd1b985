/* What build.sh adds to PyInstaller's bootloader, beside the interpreter itself, for the plugins of a lean build: a
 * built-in module, and what must be so before anything else is.
 */

#define _GNU_SOURCE
#include <Python.h>
#include <sched.h>
#include <signal.h>

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
    {"setns", enter_namespace, METH_VARARGS, "setns(fd, kind): setns(2), os.setns of Python 3.12. Raises OSError."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_bootloader", .m_methods = functions};

static PyObject *
new_module(void)
{
    return PyModule_Create(&definition);
}

__attribute__((constructor)) static void
before_main(void)
{
    signal(SIGPIPE, SIG_IGN); /* as the interpreter's other half would */
    signal(SIGCHLD, SIG_DFL); /* who ignores it, as a caller may, cannot wait for children */
    PyImport_AppendInittab("_bootloader", new_module);
}
