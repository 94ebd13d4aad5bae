#include "tensor.h"

#include <algorithm>
#include <iterator>

#include "torch.h"

namespace host {

namespace {

/* DLPack's C exchange interface, version 1.3: https://dmlc.github.io/dlpack/latest/c_api.html. It tells all of a tensor in
 * one call, which takes no longer than a single question by way of Python. */
struct DLTensor {
    void* data;
    int32_t device_type, device;
    int32_t dimensions;
    uint8_t code, bits;
    uint16_t lanes;
    const int64_t *shape, *strides;
    uint64_t offset;
};

struct Exchange {
    uint32_t major, minor;
    const Exchange* previous;
    void *allocate, *from_object, *to_object;
    int (*look)(void* object, DLTensor* found);  // 0 if it could; else Python's exception is set
    void* stream;
};

enum DeviceType { CPU = 1, CUDA = 2, ROCM = 10 };
enum Code { FLOAT = 2, BFLOAT = 4 };

const Exchange* exchange = nullptr;

constexpr int64_t dtype_of(int64_t code, int64_t bits, int64_t lanes = 1) { return code | bits << 8 | lanes << 16; }

constexpr int64_t SERVED[] = {dtype_of(FLOAT, 32), dtype_of(BFLOAT, 16), dtype_of(FLOAT, 16), dtype_of(FLOAT, 64)};

/* 0 where a tensor has no such form: it has a layout of its own, is nested, a transform's, or on an unknown device. */
int look_at_once(PyObject* tensor, Form& form) {
    DLTensor found;
    if (exchange->look(tensor, &found) != 0) {
        PyErr_Clear();
        return 0;
    }
    if (found.dimensions > MOST_DIMENSIONS) return 0;
    if (found.device_type != CPU && found.device_type != CUDA && found.device_type != ROCM) return 0;
    form.device = found.device_type == CPU ? -1 : found.device;
    form.dtype = dtype_of(found.code, found.bits, found.lanes);
    form.address = uint64_t(reinterpret_cast<uintptr_t>(found.data)) + found.offset;
    form.dimensions = found.dimensions;
    std::copy_n(found.shape, found.dimensions, form.shape);
    std::copy_n(found.strides, found.dimensions, form.strides);
    return 1;
}

/* The same by PyTorch's own attributes, one by one. */

/* How many numbers there are; 0 dimensions are -1 here, as 0 is that they are symbolic or too many. */
int read_numbers(PyObject* told, int64_t* numbers) {
    const Py_ssize_t count = PyTuple_Size(told);
    if (count < 0) return -1;
    if (count > MOST_DIMENSIONS) return 0;
    for (Py_ssize_t i = 0; i < count; ++i) {
        numbers[i] = PyLong_AsLongLong(PyTuple_GetItem(told, i));
        if (numbers[i] == -1 && PyErr_Occurred()) {
            PyErr_Clear();  // symbolic
            return 0;
        }
    }
    return 1;
}

int ask_shape(PyObject* tensor, Form& form) {
    const Ref shape(PyObject_GetAttr(tensor, torch.shape.get()));
    if (!shape) return -1;
    const int read = read_numbers(shape.get(), form.shape);
    if (read != 1) return read;
    form.dimensions = int(PyTuple_Size(shape.get()));
    const Ref strides(call_one(torch.stride.get(), tensor));
    return strides ? read_numbers(strides.get(), form.strides) : -1;
}

int ask_device(PyObject* tensor, Form& form) {
    form.device = -1;
    const int on_cpu = is_set(tensor, torch.is_cpu.get());
    if (on_cpu != 0) return on_cpu;
    const int on_cuda = is_set(tensor, torch.is_cuda.get());
    if (on_cuda != 1) return on_cuda;
    const Ref index(call_one(torch.get_device.get(), tensor));
    form.device = index ? PyLong_AsLongLong(index.get()) : 0;
    return index ? 1 : -1;
}

int ask_dtype(PyObject* tensor, Form& form) {
    const Ref dtype(PyObject_GetAttr(tensor, torch.dtype.get()));
    if (!dtype) return -1;
    // dtypes are objects that stay, so that their addresses tell them apart
    form.dtype = int64_t(reinterpret_cast<intptr_t>(dtype.get()));
    for (Py_ssize_t i = 0; i < PyTuple_Size(torch.dtypes.get()); ++i)
        if (PyTuple_GetItem(torch.dtypes.get(), i) == dtype.get()) form.dtype = SERVED[i];
    return 1;
}

int look_by_asking(PyObject* tensor, Form& form) {
    const Ref layout(PyObject_GetAttr(tensor, torch.layout.get()));
    if (layout.get() != torch.strided.get()) return layout ? 0 : -1;
    const int nested = is_set(tensor, torch.is_nested.get());
    if (nested != 0) return nested < 0 ? -1 : 0;
    if (!find_address(tensor, form.address)) {  // a transform's, which has no memory
        PyErr_Clear();
        return 0;
    }
    for (const auto ask : {ask_dtype, ask_device, ask_shape})
        if (const int asked = ask(tensor, form); asked != 1) return asked;
    return 1;
}

}  // namespace

bool Form::is_served() const { return std::find(std::begin(SERVED), std::end(SERVED), dtype) != std::end(SERVED); }

bool Form::is_empty() const { return std::find(shape, shape + dimensions, 0) != shape + dimensions; }

int look(PyObject* tensor, Form& form) {
    const Ref negative(call_one(torch.is_neg.get(), tensor));  // to be read with the other sign
    if (negative.get() != Py_False) return negative ? 0 : -1;
    return exchange != nullptr ? look_at_once(tensor, form) : look_by_asking(tensor, form);
}

bool find_address(PyObject* tensor, uint64_t& address) {
    if (DLTensor found; exchange != nullptr && exchange->look(tensor, &found) == 0) {
        address = uint64_t(reinterpret_cast<uintptr_t>(found.data)) + found.offset;
        return true;
    }
    PyErr_Clear();
    const Ref asked(call_one(torch.data_ptr.get(), tensor));
    if (asked) address = PyLong_AsUnsignedLongLong(asked.get());
    return bool(asked);
}

int look_by(PyObject* capsule) {
    exchange = nullptr;
    if (capsule == Py_None) return 0;
    auto* found = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    if (found == nullptr) return -1;
    while (found != nullptr && found->major != 1) found = found->previous;
    if (found != nullptr && found->look != nullptr) exchange = found;
    return 0;
}

}  // namespace host
