/* Does again what a call of Python did with tensors, without Python's interpreter in between.
 *
 * A small activation takes a few microseconds in its kernel and ten times that in Python. What Python does between two
 * calls of PyTorch hangs on shapes, strides, dtypes and a few settings alone, so src/optiacts/recording.py notes it
 * once for each of them, as a plan: a list of calls of PyTorch's functions and of kernels. This module finds the plan
 * of a call and runs it. It knows Python's stable interface, and neither PyTorch's C++ nor what is computed.
 */
#ifndef OPTIACTS_REPLAY_H
#define OPTIACTS_REPLAY_H

#include "key.h"
#include "python.h"

namespace host {

/* The plans of one function. */
struct Table;

/* That of a function that `make` made, which owns it. */
Table& table_of(PyObject* owner);

/* Whether a thread records: what is called meanwhile must not be replayed, for nobody would see it. */
bool is_recording();

/* What a call gives, by a plan if there is one for its key. */
PyObject* replay(Table& table, const Key& key, PyObject* const* arguments, Py_ssize_t count);

/* The same with the key of all arguments. */
PyObject* computed(Table& table, PyObject* const* arguments, Py_ssize_t count);

/* What the function itself gives. */
PyObject* in_python(const Table& table, PyObject* const* arguments, Py_ssize_t count);

/* make(compute, record) -> the function compute, which record(*arguments) -> (result, plan) records. The plan is False if
 * there is none this time, None if there never is. */
PyObject* make(PyObject*, PyObject* arguments);

/* How many calls were replayed so far. */
PyObject* count(PyObject*, PyObject*);

/* record_after(calls): a form is recorded after so many calls; what it was before */
PyObject* record_after(PyObject*, PyObject* calls);

/* Tells that this process is a forked one: no other thread is there that records. */
PyObject* forked(PyObject*, PyObject*);

/* Forgets all plans. */
PyObject* forget(PyObject*, PyObject*);

}  // namespace host

#endif
