#include "key.h"

#include "torch.h"

namespace host {

namespace {

int add_numbers(Key& key, PyObject* numbers) {
    const Py_ssize_t count = PyTuple_Size(numbers);
    if (count < 0) return -1;
    if (!key.add(count)) return 0;
    for (Py_ssize_t i = 0; i < count; ++i) {
        const int64_t number = PyLong_AsLongLong(PyTuple_GetItem(numbers, i));
        if (number == -1 && PyErr_Occurred()) {
            PyErr_Clear();  // symbolic
            return 0;
        }
        if (!key.add(number)) return 0;
    }
    return 1;
}

/* The shape, and the strides where they do not follow from it. */
int add_shape(Key& key, PyObject* tensor) {
    const Ref shape(PyObject_GetAttr(tensor, torch.shape.get()));
    if (!shape) return -1;
    const int first = key.count, added = add_numbers(key, shape.get());
    if (added != 1) return added;
    const Ref dense(call_one(torch.is_contiguous.get(), tensor));
    if (!dense) return -1;
    bool follow = dense.get() == Py_True;  // a dimension of 1 may have any stride
    for (int i = first + 1; follow && i < key.count; ++i) follow = key.words[size_t(i)] != 1;
    if (!key.add(follow)) return 0;
    if (follow) return 1;
    const Ref stride(call_one(torch.stride.get(), tensor));
    return stride ? add_numbers(key, stride.get()) : -1;
}

/* Where it is; 0 if that is no device that is served. */
int add_device(Key& key, PyObject* tensor) {
    const int on_cpu = is_set(tensor, torch.is_cpu.get());
    if (on_cpu != 0) return on_cpu < 0 ? -1 : key.add(-1);
    const int on_cuda = is_set(tensor, torch.is_cuda.get());
    if (on_cuda != 1) return on_cuda;
    const Ref index(call_one(torch.get_device.get(), tensor));
    return index ? key.add(PyLong_AsLongLong(index.get())) : -1;
}

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

int add_tensor(Key& key, PyObject* tensor, int argument) {
    const int plain = is_plain(tensor);
    if (plain != 1) return plain;
    const Ref address(call_one(torch.data_ptr.get(), tensor));
    if (!address) {  // a transform's, which has no memory
        PyErr_Clear();
        return 0;
    }
    const Ref dtype(PyObject_GetAttr(tensor, torch.dtype.get()));
    if (!dtype) return -1;
    // dtypes are objects that stay, so that their addresses tell them apart
    if (!key.add(TENSOR) || !key.add(int64_t(reinterpret_cast<intptr_t>(dtype.get())))) return 0;
    if (!add_place(key, tensor, PyLong_AsUnsignedLongLong(address.get()), argument)) return 0;
    const int added = add_device(key, tensor);
    if (added != 1) return added;
    const int first = key.count, shaped = add_shape(key, tensor);
    if (shaped != 1 || key.addresses[size_t(argument)] != 0) return shaped;
    // elements without memory are zeros that nobody has written; no elements need none
    const int dimensions = int(key.words[size_t(first)]);
    for (int i = 1; i <= dimensions; ++i)
        if (key.words[size_t(first + i)] == 0) return 1;
    return 0;
}

/* Whether an object may be compared with those of other calls: strings, numbers, dtypes, and what `use` was told. */
int is_comparable(PyObject* object) {
    if (PyUnicode_CheckExact(object) || PyFloat_CheckExact(object) || PyLong_CheckExact(object)) return 1;
    return PyObject_IsInstance(object, torch.comparable.get());
}

}  // namespace

int add_argument(Key& key, PyObject* argument, int place) {
    if (is_plain_type(argument)) return add_tensor(key, argument, place);
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

int is_plain(PyObject* tensor) {
    const Ref layout(PyObject_GetAttr(tensor, torch.layout.get()));
    if (layout.get() != torch.strided.get()) return layout ? 0 : -1;
    const int nested = is_set(tensor, torch.is_nested.get());
    if (nested != 0) return nested < 0 ? -1 : 0;
    const Ref negative(call_one(torch.is_neg.get(), tensor));  // to be read with the other sign
    return negative ? negative.get() == Py_False : -1;
}

}  // namespace host
