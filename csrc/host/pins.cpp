#include "pins.h"

namespace host {

namespace {

/* What is named is read, or null, also without an exception if it is not there. */
Ref read(PyObject* owner, PyObject* name) {
    Ref found(PyObject_GetAttr(owner, name));
    if (!found && PyErr_ExceptionMatches(PyExc_AttributeError)) PyErr_Clear();
    return found;
}

Ref in_cell(PyObject* cell) { return Ref(cell == nullptr ? nullptr : PyObject_GetAttrString(cell, "cell_contents")); }

/* What a pin's root and path lead to now. Null if that is gone, or on an error. */
Ref reached(PyObject* root, PyObject* path, PyObject* callee, PyObject* cell_type) {
    Ref now;
    Py_ssize_t place = 0;
    if (root == Py_None) {
        now = Ref::of(callee);
    } else if (PyLong_CheckExact(root)) {  // a place in the callee's closure
        const Ref closure(PyObject_GetAttrString(callee, "__closure__"));
        now = in_cell(Ref(closure ? PyObject_GetItem(closure.get(), root) : nullptr).get());
    } else if (reinterpret_cast<PyObject*>(Py_TYPE(root)) == cell_type) {
        now = in_cell(root);
    } else if (PyDict_Check(root)) {
        now = Ref::of(PyDict_GetItemWithError(root, PyTuple_GetItem(path, place++)));
    } else {
        now = Ref::of(root);
    }
    for (; now && place < PyTuple_Size(path); ++place) now = read(now.get(), PyTuple_GetItem(path, place));
    return now;
}

/* Equal constants of one type; not the two zeros, which compute differently. -1 on an error. */
int is_equal(PyObject* a, PyObject* b) {
    if (Py_TYPE(a) != Py_TYPE(b)) return 0;
    const bool constant = PyLong_CheckExact(a) || PyFloat_CheckExact(a) || PyUnicode_CheckExact(a) ||
                          PyTuple_CheckExact(a) || PyDict_CheckExact(a);
    if (!constant) return 0;
    const int equal = PyObject_RichCompareBool(a, b, Py_EQ);
    if (equal != 1 || !(PyLong_CheckExact(a) || PyFloat_CheckExact(a))) return equal;
    return PyObject_IsTrue(a);
}

/* Whether nobody sees a call of what is a module; -1 on an error. */
int is_unseen(PyObject* object, PyObject* module_type, PyObject* seen) {
    const int is_module = PyObject_IsInstance(object, module_type);
    if (is_module != 1) return is_module < 0 ? -1 : 1;
    const Ref found(call_one(seen, object));
    const int sees = found ? PyObject_IsTrue(found.get()) : -1;
    return sees < 0 ? -1 : !sees;
}

}  // namespace

PyObject* holds(PyObject*, PyObject* const* arguments, Py_ssize_t) {
    PyObject *const pins = arguments[0], *const callee = arguments[1], *const types = arguments[2];
    PyObject *const owner = arguments[3], *const seen = arguments[4];
    const Py_ssize_t count = PyTuple_Size(pins);
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject* const pin = PyTuple_GetItem(pins, i);  // (root, path, value)
        PyObject* const value = PyTuple_GetItem(pin, 2);
        const Ref now = reached(PyTuple_GetItem(pin, 0), PyTuple_GetItem(pin, 1), callee, PyTuple_GetItem(types, 0));
        if (!now) {
            if (PyErr_Occurred()) return nullptr;
            Py_RETURN_FALSE;
        }
        if (value == owner) {
            if (now.get() != callee) Py_RETURN_FALSE;
            continue;
        }
        const int same = now.get() == value ? 1 : is_equal(now.get(), value);
        const int unseen = same == 1 ? is_unseen(now.get(), PyTuple_GetItem(types, 1), seen) : same;
        if (unseen < 0) return nullptr;
        if (unseen == 0) Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

}  // namespace host
