#include "function.h"

#include <algorithm>
#include <array>
#include <utility>

#include "replay.h"
#include "torch.h"

namespace host {

namespace {

/* A Function of plain tensors, which src/optiacts/ops/plain.py explains. */
struct Function {
    Ref forward, backward;  // the tables of what it computes
    Ref watched;            // its backward where somebody looks on
    Ref remember;           // (ctx, tensor), where hooks see what is saved
    Ref apply;              // of PyTorch's base class
    bool any_gradient;      // whether that of any tensor will do, or only that of the first
    bool autocasts;         // whether it is the same under autocast
};

const char* const FUNCTION = "optiacts.host.function";

Function& function_of(PyObject* self) { return *static_cast<Function*>(PyCapsule_GetPointer(self, FUNCTION)); }

/* Whether all of ((object, name of an attribute, or None to call it, result), ...) is so; -1 on an error. */
int is_quiet(PyObject* facts) {
    const Py_ssize_t count = PyTuple_Size(facts);
    for (Py_ssize_t i = 0; i < count; ++i) {
        PyObject *const fact = PyTuple_GetItem(facts, i), *const object = PyTuple_GetItem(fact, 0);
        PyObject *const name = PyTuple_GetItem(fact, 1), *const wanted = PyTuple_GetItem(fact, 2);
        const Ref found(name == Py_None ? call_none(object) : PyObject_GetAttr(object, name));
        if (!found) return -1;
        if (found.get() == wanted) continue;
        const int same = PyObject_RichCompareBool(found.get(), wanted, Py_EQ);
        if (same != 1) return same;
    }
    return 1;
}

}  // namespace

PyObject* quiet(PyObject*, PyObject*) {
    const Ref enabled(call_none(torch.grad_enabled.get())), hooks(call_one(torch.hooks.get(), Py_False));
    if (!enabled || !hooks) return nullptr;
    int found = enabled.get() == Py_True && hooks.get() == Py_None;
    for (const Ref* facts : {&torch.modes_quiet, &torch.forward_quiet}) found = found == 1 ? is_quiet(facts->get()) : found;
    return found < 0 ? nullptr : PyBool_FromLong(found);
}

namespace {

/* A call of `apply`, as far as it is described when PyTorch calls `forward` with the same arguments. */
struct Pending {
    const Function* of;
    PyObject* const* arguments;
    Py_ssize_t count;
    Key key;
    bool described = true;  // whether the key is whole

    bool is_of(const Function* function, PyObject* const* others, Py_ssize_t other_count) const {
        return of == function && count == other_count && std::equal(arguments, arguments + count, others);
    }
};

thread_local Pending* pending = nullptr;

/* Whether a gradient is wanted of plain tensors, and nobody looks on; -1 on an error. Describes the call besides. */
int is_ready(Pending& made) {
    const Ref enabled(call_none(torch.grad_enabled.get()));
    if (enabled.get() != Py_True) return enabled ? 0 : -1;
    // before tensors are looked at: PyTorch takes long to refuse a transform's
    if (const int quiet = is_quiet(torch.forward_quiet.get()); quiet != 1) return quiet;
    bool wanted = false, first = true;
    int64_t device = 0;
    Key& key = made.key;
    for (int i = 0; i < made.count; ++i) {
        PyObject* const argument = made.arguments[i];
        if (!is_plain_type(argument)) {
            const int subclass = PyUnicode_CheckExact(argument) ? 0 : PyObject_IsInstance(argument, torch.tensor.get());
            if (subclass != 0) return subclass < 0 ? -1 : 0;
            const int added = made.described ? add_argument(key, argument, i) : 0;
            if (added < 0) return -1;
            made.described = added == 1;
            continue;
        }
        if (first || made.of->any_gradient) {
            const int requires = is_set(argument, torch.requires_grad.get());
            if (requires < 0) return -1;
            wanted = wanted || requires;
            if (!wanted && !made.of->any_gradient) return 0;
        }
        Form form;
        const int added = add_tensor(key, argument, i, form);
        if (added != 1) return added;
        if (!form.is_served() || (!first && form.device != device)) return 0;
        if (form.address == 0) return 0;  // PyTorch's own way with no elements
        device = form.device;
        first = false;
    }
    if (!wanted) return 0;
    if (!made.of->autocasts) {
        const Ref casts(call_none(torch.autocasts.get()));
        if (casts.get() != Py_False) return casts ? 0 : -1;
    }
    if (!made.described) return 1;
    const int added = add_settings(key);
    made.described = added == 1;
    return added < 0 ? -1 : 1;
}

/* apply(*inputs) -> the outputs, or None where somebody may look on */
PyObject* function_apply(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
    const Function& of = function_of(self);
    if (count > MOST_ARGUMENTS || is_recording()) Py_RETURN_NONE;
    Pending made{&of, arguments, count, {}};
    const int ready = is_ready(made);
    if (ready < 0) return nullptr;
    if (ready == 0) Py_RETURN_NONE;
    Pending* const outer = std::exchange(pending, &made);
    PyObject* const outputs = call(of.apply.get(), arguments, size_t(count), nullptr);
    pending = outer;
    return outputs;
}

/* What the forward computes. */
PyObject* forward_of(const Function& of, PyObject* const* arguments, Py_ssize_t count) {
    Table& table = table_of(of.forward.get());
    Pending* const made = std::exchange(pending, nullptr);
    if (made == nullptr || !made->is_of(&of, arguments, count)) return computed(table, arguments, count);
    if (!made->described || is_recording()) return in_python(table, arguments, count);
    return replay(table, made->key, arguments, count);
}

/* forward(ctx, *inputs) */
PyObject* function_forward(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
    const Function& of = function_of(self);
    PyObject* const ctx = arguments[0];
    const Ref made(forward_of(of, arguments + 1, count - 1));  // (outputs, saved, info)
    if (!made) return nullptr;
    PyObject *const outputs = PyTuple_GetItem(made.get(), 0), *const saved = PyTuple_GetItem(made.get(), 1);
    PyObject* const info = PyTuple_GetItem(made.get(), 2);
    if (info == nullptr || PyObject_SetAttr(ctx, torch.info.get(), info) < 0) return nullptr;
    const Ref hooks(call_one(torch.hooks.get(), Py_False));
    if (!hooks) return nullptr;
    if (hooks.get() == Py_None) {
        if (PyObject_SetAttr(ctx, torch.state.get(), Py_None) < 0) return nullptr;
    } else {
        PyObject* const both[] = {ctx, PyTuple_GetItem(saved, 0)};
        if (!Ref(call(of.remember.get(), both, 2, nullptr))) return nullptr;
    }
    if (PyObject_SetAttr(ctx, torch.to_save.get(), saved) < 0) return nullptr;
    if (PyObject_SetAttr(ctx, torch.materialize_grads.get(), Py_False) < 0) return nullptr;
    Py_INCREF(outputs);
    return outputs;
}

/* Whether a backward may take what was saved unseen: nobody else had it, and nobody looks on. -1 on an error. */
int is_untouched(PyObject* ctx, PyObject* const* grads, Py_ssize_t count) {
    if (count < 1 || !is_plain_type(grads[0])) return 0;
    for (Py_ssize_t i = 1; i < count; ++i)
        if (grads[i] != Py_None) return 0;
    const Ref state(PyObject_GetAttr(ctx, torch.state.get()));
    if (state.get() != Py_None) return state ? 0 : -1;
    if (const int quiet = is_quiet(torch.backward_quiet.get()); quiet != 1) return quiet;
    Form form;  // last, since it takes PyTorch long to refuse a transform's tensor
    const int seen = look(grads[0], form);
    return seen != 1 ? seen : form.address != 0;  // without memory it is zeros that nobody has written
}

/* Whether the exception that is set says that a saved tensor was changed in place. Then it is gone, else it stays. */
bool is_overwritten() {
    if (!PyErr_ExceptionMatches(PyExc_RuntimeError)) return false;
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    const Ref told(PyObject_Str(value)), sought(PyUnicode_FromString("modified by an inplace operation"));
    const bool found = told && sought && PyUnicode_Contains(told.get(), sought.get()) == 1;
    PyErr_Clear();
    PyErr_Restore(type, value, trace);
    if (found) PyErr_Clear();
    return found;
}

/* backward(ctx, *grads) */
PyObject* function_backward(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
    const Function& of = function_of(self);
    PyObject *const ctx = arguments[0], *const grad = arguments[1];
    const int untouched = is_untouched(ctx, arguments + 1, count - 1);
    if (untouched < 0) return nullptr;
    if (untouched == 0) return call(of.watched.get(), arguments, size_t(count), nullptr);
    const Ref saved(PyObject_GetAttr(ctx, torch.saved_tensors.get()));
    if (!saved)  // the other one explains a change in place; any other error is one, of hooks for instance
        return is_overwritten() ? call(of.watched.get(), arguments, size_t(count), nullptr) : nullptr;
    const Ref info(PyObject_GetAttr(ctx, torch.info.get()));
    const Ref needed(PyObject_GetAttr(ctx, torch.needs_input_grad.get()));
    if (!info || !needed) return nullptr;
    std::array<PyObject*, MOST_ARGUMENTS> given{info.get(), needed.get(), grad};
    const Py_ssize_t tensors = PyTuple_Size(saved.get()), total = 3 + tensors;
    if (total > MOST_ARGUMENTS) return PyErr_Format(PyExc_ValueError, "too many saved tensors");
    for (Py_ssize_t i = 0; i < tensors; ++i) given[size_t(3 + i)] = PyTuple_GetItem(saved.get(), i);
    return computed(table_of(of.backward.get()), given.data(), total);
}

PyMethodDef function_methods[] = {method("forward", function_forward), method("backward", function_backward),
                                  method("apply", function_apply)};

PyObject* finish(PyObject* self, PyObject* apply) {
    function_of(self).apply = Ref::of(apply);
    return PyCFunction_NewEx(&function_methods[2], self, nullptr);
}

PyMethodDef finish_method = {"finish", finish, METH_O, nullptr};

}  // namespace

PyObject* function(PyObject*, PyObject* arguments) {
    PyObject *forward, *backward, *watched, *remember;
    int any_gradient, autocasts;
    if (!PyArg_ParseTuple(arguments, "OOOOpp", &forward, &backward, &watched, &remember, &any_gradient, &autocasts))
        return nullptr;
    if (!PyCFunction_Check(forward) || !PyCFunction_Check(backward))
        return PyErr_Format(PyExc_TypeError, "forward and backward must come from make");
    auto* made = new Function{Ref::of(PyCFunction_GetSelf(forward)),
                              Ref::of(PyCFunction_GetSelf(backward)),
                              Ref::of(watched),
                              Ref::of(remember),
                              Ref(),
                              any_gradient != 0,
                              autocasts != 0};
    const Ref owner(PyCapsule_New(made, FUNCTION, [](PyObject* capsule) { delete &function_of(capsule); }));
    if (!owner) return nullptr;
    const Ref first(PyCFunction_NewEx(&function_methods[0], owner.get(), nullptr));
    const Ref second(PyCFunction_NewEx(&function_methods[1], owner.get(), nullptr));
    const Ref third(PyCFunction_NewEx(&finish_method, owner.get(), nullptr));
    return first && second && third ? PyTuple_Pack(3, first.get(), second.get(), third.get()) : nullptr;
}

}  // namespace host
