/* The form of a tensor, and where its memory lies. */
#ifndef OPTIACTS_TENSOR_H
#define OPTIACTS_TENSOR_H

#include <cstdint>

#include "python.h"

namespace host {

constexpr int MOST_DIMENSIONS = 16;

/* What tells a tensor from others of another form, if it is dense, and read as it lies in memory. */
struct Form {
    int64_t dtype;     // see `is_served`
    int64_t device;    // -1: the CPU
    uint64_t address;  // of the first element
    int dimensions;
    int64_t shape[MOST_DIMENSIONS], strides[MOST_DIMENSIONS];

    /* Whether its dtype is one that we compute with. */
    bool is_served() const;
    bool is_empty() const;
};

/* 1 and the form; 0 if a tensor of a plain type is more than its memory, or lies on no device that is served; -1 on an
 * error. */
int look(PyObject* tensor, Form& form);

/* The address of a tensor's first element; false on an error. */
bool find_address(PyObject* tensor, uint64_t& address);

/* Has tensors looked at by the exchange interface of DLPack, a capsule of PyTorch's; None if there is none, and they are
 * asked one thing after the other. -1 on an error. */
int look_by(PyObject* exchange);

}  // namespace host

#endif
