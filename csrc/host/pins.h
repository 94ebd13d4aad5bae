/* Whether what a module's code depends on is as it was: `holds` of src/optiacts/conversion/purity.py, in C. */
#ifndef OPTIACTS_PINS_H
#define OPTIACTS_PINS_H

#include "python.h"

namespace host {

/* holds(pins, callee, (cell, module), owner, seen) -> bool. `cell` and `module` are types, `owner` stands for the callee
 * in a pin, and seen(module) tells whether somebody sees a call of a module. */
PyObject* holds(PyObject*, PyObject* const* arguments, Py_ssize_t count);

}  // namespace host

#endif
