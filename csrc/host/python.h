/* Python's stable interface, which one build has for every Python from 3.10 on, and what stands around it here. */
#ifndef OPTIACTS_PYTHON_H
#define OPTIACTS_PYTHON_H

#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <utility>

namespace host {

/* An owned reference. */
class Ref {
public:
    Ref() = default;
    explicit Ref(PyObject* owned) : held(owned) {}
    Ref(Ref&& other) noexcept : held(std::exchange(other.held, nullptr)) {}
    Ref& operator=(Ref&& other) noexcept {
        std::swap(held, other.held);
        return *this;
    }
    ~Ref() { Py_XDECREF(held); }
    static Ref of(PyObject* borrowed) {
        Py_XINCREF(borrowed);
        return Ref(borrowed);
    }
    PyObject* get() const { return held; }
    PyObject* release() { return std::exchange(held, nullptr); }
    explicit operator bool() const { return held != nullptr; }

private:
    PyObject* held = nullptr;
};

/* `callable(*arguments, **named)`: the last of the arguments are named. */
using Vectorcall = PyObject* (*)(PyObject*, PyObject* const*, size_t, PyObject*);
extern Vectorcall call;

inline PyObject* call_one(PyObject* callable, PyObject* argument) { return call(callable, &argument, 1, nullptr); }

inline PyObject* call_none(PyObject* callable) { return call(callable, nullptr, 0, nullptr); }

/* A property that is a bool: 1, 0 or, on an error, -1. */
inline int is_set(PyObject* object, PyObject* name) {
    const Ref found(PyObject_GetAttr(object, name));
    return found ? found.get() == Py_True : -1;
}

using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);

/* A method that takes its arguments as they are. */
inline PyMethodDef method(const char* name, Fast function, const char* doc = nullptr) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, doc};
}

}  // namespace host

#endif
