/* The forward and the backward of an autograd Function, and what applies it: see src/optiacts/ops/plain.py. */
#ifndef OPTIACTS_FUNCTION_H
#define OPTIACTS_FUNCTION_H

#include "python.h"

namespace host {

/* function(forward, backward, watched, remember, any_gradient, autocasts) -> (forward, backward, finish), where
 * finish(apply of the Function made of these) -> apply */
PyObject* function(PyObject*, PyObject* arguments);

}  // namespace host

#endif
