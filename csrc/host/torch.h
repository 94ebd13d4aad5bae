/* What is called and known of PyTorch. */
#ifndef OPTIACTS_TORCH_H
#define OPTIACTS_TORCH_H

#include "python.h"

namespace host {

/* What this module calls and knows of PyTorch, by the names in src/optiacts/replay.py. */
struct Torch {
    Ref tensor, parameter;  // the types that are nothing but tensors
    Ref comparable;         // the types, besides numbers and strings, of arguments that are no tensors
    Ref data_ptr, stride, get_device, is_neg, strided;
    Ref threads, autocasts, settings, grad_enabled, hooks;
    Ref trace_frames;  // sets what sees each frame of Python before it runs, and gives what did
    Ref forward_quiet;     // see `is_quiet`: all of it where nobody looks on
    Ref backward_quiet;
    Ref modes_quiet;  // the same of modes that see PyTorch's functions
    Ref dtypes;            // float32, bfloat16, float16 and float64
    Ref shape, dtype, layout, is_cuda, is_cpu, is_nested, requires_grad;  // names
    Ref saved_tensors, needs_input_grad, state, info;
    Ref to_save, materialize_grads;  // names of what a Function's context is told by
};

extern Torch& torch;

/* Whether an object is a tensor of a type that is nothing but one. */
inline bool is_plain_type(PyObject* object) {
    PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    return type == torch.tensor.get() || type == torch.parameter.get();
}

/* use(names): a dict with what `Torch` has. */
PyObject* use(PyObject*, PyObject* names);

}  // namespace host

#endif
