/* The forward and the backward of an autograd Function, and what applies it: see src/optiacts/ops/plain.py. */
#ifndef OPTIACTS_FUNCTION_H
#define OPTIACTS_FUNCTION_H

#include "python.h"

namespace host {

/* function(forward, backward, watched, remember, any_gradient, autocasts) -> (forward, backward, finish), where
 * finish(apply of the Function made of these) -> apply */
PyObject* function(PyObject*, PyObject* arguments);

/* quiet() -> whether gradients are computed and nobody looks on: no hook on saved tensors, mode, profiler, transform,
 * trace or compiler */
PyObject* quiet(PyObject*, PyObject*);

}  // namespace host

#endif
