/* The module optiacts._host: what the host does in each call, without Python's interpreter. */
#include "function.h"
#include "pins.h"
#include "plan.h"
#include "replay.h"
#include "torch.h"

namespace {

PyMethodDef methods[] = {
    {"use", host::use, METH_O, "Tells what of PyTorch to call."},
    {"make", host::make, METH_VARARGS, "A function that is recorded and replayed."},
    {"function", host::function, METH_VARARGS, "A Function's forward and backward, and what applies it."},
    {"quiet", host::quiet, METH_NOARGS, "Whether gradients are computed and nobody looks on."},
    {"plan", host::make_plan, METH_VARARGS, "A plan of what was recorded."},
    host::method("check", host::check, "Runs a plan once."),
    {"count", host::count, METH_NOARGS, "How many calls were replayed so far."},
    {"record_after", host::record_after, METH_O, "After how many calls a form is recorded."},
    {"forked", host::forked, METH_NOARGS, "Tells that this process is a forked one."},
    {"forget", host::forget, METH_NOARGS, "Forgets all plans."},
    host::method("holds", host::holds, "Whether what a callable depends on is as it was."),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_host", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

/* To be raised, here and in src/optiacts/host.py, with every change of what these take or give: a module of another
 * number than its caller's is not used. */
constexpr long INTERFACE = 4;

PyMODINIT_FUNC PyInit__host() {
    PyObject* const module = PyModule_Create(&definition);
    if (module != nullptr) PyModule_AddIntConstant(module, "INTERFACE", INTERFACE);
    return module;
}
