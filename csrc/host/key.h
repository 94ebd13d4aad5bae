/* What a call looked like: calls with equal keys do the same with their tensors, whatever these hold. */
#ifndef OPTIACTS_KEY_H
#define OPTIACTS_KEY_H

#include <array>
#include <cstdint>

#include "python.h"
#include "tensor.h"

namespace host {

constexpr int MOST_ARGUMENTS = 40, MOST_WORDS = 320;

/* What kind of argument the words that follow tell of. */
enum Tag : int64_t { NOTHING = -10, YES, NO, TUPLE_OF, LIST_OF, OBJECT, AUTOCAST, TENSOR };

/* Words of numbers, and objects that are compared as such. */
struct Key {
    std::array<int64_t, MOST_WORDS> words;
    int count = 0;
    std::array<PyObject*, MOST_ARGUMENTS + 1> objects;  // borrowed
    int objects_count = 0;
    std::array<uint64_t, MOST_ARGUMENTS> addresses{};  // of the arguments that are tensors
    std::array<PyObject*, MOST_ARGUMENTS> tensors{};   // those themselves, borrowed
    Ref settings;

    bool add(int64_t word) {
        if (count == MOST_WORDS) return false;
        words[size_t(count++)] = word;
        return true;
    }
    uint64_t hash() const {
        uint64_t mixed = 0x9E3779B97F4A7C15u;
        for (int i = 0; i < count; ++i) {
            mixed ^= uint64_t(words[size_t(i)]);
            mixed *= 0xD6E8FEB86659FD93u;
            mixed ^= mixed >> 32;
        }
        return mixed;
    }
};

/* Adds a tensor of a plain type, whose form is found on the way; as below. */
int add_tensor(Key& key, PyObject* tensor, int place, Form& form);

/* Each adds something: 1 if it could be added, 0 if this is no call to be replayed, -1 on an error. */
int add_argument(Key& key, PyObject* argument, int place);
int add_settings(Key& key);
int describe(Key& key, PyObject* const* arguments, Py_ssize_t count);

}  // namespace host

#endif
