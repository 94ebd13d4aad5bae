#include "key.h"

#include "torch.h"

namespace host {

namespace {

/* Where a tensor's memory lies: how it is aligned, and the first arguments that have the same, and that are the same
 * tensor. What is saved of two tensors in one memory hangs together with the graph in two ways. */
bool add_place(Key& key, PyObject* tensor, uint64_t place, int argument) {
    key.addresses[size_t(argument)] = place;
    key.tensors[size_t(argument)] = tensor;
    int alike = 0, same = 0;
    while (key.addresses[size_t(alike)] != place) ++alike;
    while (key.tensors[size_t(same)] != tensor) ++same;
    return key.add(int64_t(place % 64)) && key.add(alike) && key.add(same);
}

bool add_numbers(Key& key, const int64_t* numbers, int count) {
    for (int i = 0; i < count; ++i)
        if (!key.add(numbers[i])) return false;
    return true;
}

/* Whether an object may be compared with those of other calls: strings, numbers, dtypes, and what `use` was told. */
int is_comparable(PyObject* object) {
    if (PyUnicode_CheckExact(object) || PyFloat_CheckExact(object) || PyLong_CheckExact(object)) return 1;
    return PyObject_IsInstance(object, torch.comparable.get());
}

}  // namespace

int add_tensor(Key& key, PyObject* tensor, int argument, Form& form) {
    const int seen = look(tensor, form);
    if (seen != 1) return seen;
    if (form.address == 0 && !form.is_empty()) return 0;  // zeros that nobody has written
    return key.add(TENSOR) && key.add(form.dtype) && add_place(key, tensor, form.address, argument) &&
           key.add(form.device) && key.add(form.dimensions) && add_numbers(key, form.shape, form.dimensions) &&
           add_numbers(key, form.strides, form.dimensions);
}

int add_argument(Key& key, PyObject* argument, int place) {
    Form form;
    if (is_plain_type(argument)) return add_tensor(key, argument, place, form);
    if (argument == Py_None || argument == Py_True || argument == Py_False)
        return key.add(argument == Py_None ? NOTHING : argument == Py_True ? YES : NO);
    if (PyTuple_CheckExact(argument) || PyList_CheckExact(argument)) {
        const Py_ssize_t count = PySequence_Size(argument);
        if (!key.add(PyTuple_CheckExact(argument) ? TUPLE_OF : LIST_OF) || !key.add(count)) return 0;
        for (Py_ssize_t i = 0; i < count; ++i) {
            const Ref item(PySequence_GetItem(argument, i));
            if (!item) return -1;
            if (!PyLong_Check(item.get())) return 0;  // True is one too, and computes as 1 does
            const int64_t number = PyLong_AsLongLong(item.get());
            if (number == -1 && PyErr_Occurred()) return -1;
            if (!key.add(number)) return 0;
        }
        return 1;
    }
    const int comparable = is_comparable(argument);
    if (comparable != 1) return comparable;
    if (!key.add(OBJECT)) return 0;
    key.objects[size_t(key.objects_count++)] = argument;
    return 1;
}

int add_settings(Key& key) {
    const Ref threads(call_none(torch.threads.get()));
    const Ref autocasts(threads ? call_none(torch.autocasts.get()) : nullptr);
    if (!autocasts) return -1;
    if (!key.add(PyLong_AsLongLong(threads.get()))) return 0;
    if (autocasts.get() == Py_False) return 1;
    key.settings = Ref(call_none(torch.settings.get()));
    if (!key.settings) return -1;
    key.objects[size_t(key.objects_count++)] = key.settings.get();
    return key.add(AUTOCAST);
}

int describe(Key& key, PyObject* const* arguments, Py_ssize_t count) {
    if (count > MOST_ARGUMENTS) return 0;
    for (Py_ssize_t i = 0; i < count; ++i) {
        const int added = add_argument(key, arguments[i], int(i));
        if (added != 1) return added;
    }
    return add_settings(key);
}

}  // namespace host
