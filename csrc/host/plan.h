/* What a call did, as a list of calls of PyTorch's functions and of kernels. */
#ifndef OPTIACTS_PLAN_H
#define OPTIACTS_PLAN_H

#include <cstdint>
#include <memory>

#include "python.h"

namespace host {

struct Plan;
using Shared = std::shared_ptr<const Plan>;

/* 1 and the result; 0 if the plan does not hold this time; -1 on an error. `addresses`: of the arguments that are
 * tensors, where they are known. */
int run(const Plan& plan, PyObject* const* arguments, int count, PyObject*& result, const uint64_t* addresses);

/* The plan that Python holds, or null, with its exception. */
const Shared* plan_of(PyObject* capsule);

/* plan(steps, result, registers, kept) -> a plan; None if it takes more than there is room for */
PyObject* make_plan(PyObject*, PyObject* arguments);

/* check(plan, spoil, *arguments) -> what the plan makes of them, though spoil(tensor) writes to all fresh memory.
 * NotImplemented if it does not hold. */
PyObject* check(PyObject*, PyObject* const* arguments, Py_ssize_t count);

}  // namespace host

#endif
