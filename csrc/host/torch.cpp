#include "torch.h"

#include <dlfcn.h>

#include "tensor.h"

namespace host {

Torch& torch = *new Torch;  // never destroyed: Python ends first

namespace {

/* For a Python that has no vectorcall to be found: it exports it since 3.11, and promises it since 3.12. */
PyObject* call_slowly(PyObject* callable, PyObject* const* arguments, size_t count, PyObject* names) {
    const Py_ssize_t named = names == nullptr ? 0 : PyTuple_Size(names);
    Ref positional(PyTuple_New(Py_ssize_t(count))), keywords(named == 0 ? nullptr : PyDict_New());
    if (!positional || (named != 0 && !keywords)) return nullptr;
    for (size_t i = 0; i < count; ++i) {
        Py_INCREF(arguments[i]);
        PyTuple_SetItem(positional.get(), Py_ssize_t(i), arguments[i]);
    }
    for (Py_ssize_t i = 0; i < named; ++i)
        if (PyDict_SetItem(keywords.get(), PyTuple_GetItem(names, i), arguments[count + size_t(i)]) < 0) return nullptr;
    return PyObject_Call(callable, positional.get(), keywords.get());
}

}  // namespace

Vectorcall call = call_slowly;

PyObject* use(PyObject*, PyObject* names) {
    const std::pair<const char*, Ref*> given[] = {
        {"tensor", &torch.tensor},
        {"parameter", &torch.parameter},
        {"comparable", &torch.comparable},
        {"data_ptr", &torch.data_ptr},
        {"stride", &torch.stride},
        {"get_device", &torch.get_device},
        {"is_neg", &torch.is_neg},
        {"strided", &torch.strided},
        {"threads", &torch.threads},
        {"autocasts", &torch.autocasts},
        {"settings", &torch.settings},
        {"grad_enabled", &torch.grad_enabled},
        {"trace_frames", &torch.trace_frames},
        {"hooks", &torch.hooks},
        {"forward_quiet", &torch.forward_quiet},
        {"backward_quiet", &torch.backward_quiet},
        {"modes_quiet", &torch.modes_quiet},
        {"dtypes", &torch.dtypes},
        {"to_save", &torch.to_save},
        {"materialize_grads", &torch.materialize_grads},
    };
    for (const auto& [name, place] : given) {
        PyObject* const found = PyDict_GetItemString(names, name);
        if (found == nullptr) return PyErr_Format(PyExc_KeyError, "%s", name);
        *place = Ref::of(found);
    }
    PyObject* const exchange = PyDict_GetItemString(names, "exchange");
    if (exchange == nullptr) return PyErr_Format(PyExc_KeyError, "exchange");
    if (look_by(exchange) < 0) return nullptr;
    const std::pair<const char*, Ref*> attributes[] = {
        {"shape", &torch.shape},
        {"dtype", &torch.dtype},
        {"layout", &torch.layout},
        {"is_nested", &torch.is_nested},
        {"is_cuda", &torch.is_cuda},
        {"is_cpu", &torch.is_cpu},
        {"requires_grad", &torch.requires_grad},
        {"saved_tensors", &torch.saved_tensors},
        {"needs_input_grad", &torch.needs_input_grad},
        {"state", &torch.state},
        {"info", &torch.info},
    };
    for (const auto& [name, place] : attributes) *place = Ref(PyUnicode_InternFromString(name));
    if (void* const quick = dlsym(RTLD_DEFAULT, "PyObject_Vectorcall")) call = reinterpret_cast<Vectorcall>(quick);
    Py_RETURN_NONE;
}

}  // namespace host
