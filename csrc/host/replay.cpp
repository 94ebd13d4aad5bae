#include "replay.h"

#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "plan.h"
#include "torch.h"

namespace host {

namespace {

int recording = 0;        // how many threads record
long patience = 32;       // calls of a form before it is recorded
uint64_t replays = 0;     // calls that were replayed so far
uint64_t generation = 0;  // plans of an earlier one are forgotten

constexpr size_t MOST_ENTRIES = 1024;
constexpr int MOST_ATTEMPTS = 8;  // to record a call

const char* const TABLE = "optiacts.host.table";

/* A key that was met, and its plan. */
struct Entry {
    std::vector<int64_t> words;
    std::vector<Ref> objects;
    bool refused = false;
    long calls = 0;
    int attempts = 0;
    Shared plan;

    explicit Entry(const Key& key) : words(key.words.begin(), key.words.begin() + key.count) {
        for (int i = 0; i < key.objects_count; ++i) objects.push_back(Ref::of(key.objects[size_t(i)]));
    }
    bool has_words(const Key& key) const {
        return words.size() == size_t(key.count) && objects.size() == size_t(key.objects_count) &&
               memcmp(words.data(), key.words.data(), words.size() * sizeof(int64_t)) == 0;
    }
    /* Whether it is the key's and has the same objects, not only equal ones: no Python is run for that. */
    bool is_just(const Key& key) const {
        if (!has_words(key)) return false;
        for (size_t i = 0; i < objects.size(); ++i)
            if (objects[i].get() != key.objects[i]) return false;
        return true;
    }
    /* 1 if it is the key's, 0 if not, -1 on an error. */
    int is_of(const Key& key) const {
        if (!has_words(key)) return 0;
        for (size_t i = 0; i < objects.size(); ++i) {
            PyObject *mine = objects[i].get(), *other = key.objects[i];
            if (mine == other) continue;
            if (Py_TYPE(mine) != Py_TYPE(other)) return 0;  // 1, 1.0 and True are equal
            const int equal = PyObject_RichCompareBool(mine, other, Py_EQ);
            if (equal != 1) return equal;
        }
        return 1;
    }
};

}  // namespace

struct Table {
    Ref compute, record;
    uint64_t generation = 0;
    std::unordered_multimap<uint64_t, std::shared_ptr<Entry>> entries;
};

namespace {

/* Calls what is no part of a model: a compiler that looks at each frame of Python must not trace it. */
PyObject* untraced(PyObject* callable, PyObject* const* arguments, Py_ssize_t count) {
    const Ref tracer(call_one(torch.trace_frames.get(), Py_None));
    if (!tracer) return nullptr;
    Ref result(call(callable, arguments, size_t(count), nullptr));
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    const Ref none(call_one(torch.trace_frames.get(), tracer.get()));
    if (type != nullptr) PyErr_Restore(type, value, traceback);
    return none ? result.release() : nullptr;
}

/* Runs the call with a recorder, and keeps what it has recorded. */
PyObject* recorded(Table& table, Entry& entry, PyObject* const* arguments, Py_ssize_t count) {
    ++recording;
    const Ref both(untraced(table.record.get(), arguments, count));
    --recording;
    if (!both) return nullptr;
    PyObject* const found = PyTuple_GetItem(both.get(), 1);
    if (found == nullptr) return nullptr;
    entry.refused = found == Py_None || ++entry.attempts == MOST_ATTEMPTS;
    if (found != Py_None && found != Py_False) {
        const Shared* plan = plan_of(found);
        if (plan == nullptr) return nullptr;
        entry.plan = *plan;
    }
    return Ref::of(PyTuple_GetItem(both.get(), 0)).release();
}

/* The entry of a key, made if there is none; null on an error. */
std::shared_ptr<Entry> entry_of(Table& table, const Key& key) {
    if (table.generation != generation || table.entries.size() >= MOST_ENTRIES) {
        auto old = std::move(table.entries);  // whose objects may run Python as they go
        table.entries.clear();
        table.generation = generation;
    }
    const uint64_t hash = key.hash();
    const auto range = table.entries.equal_range(hash);
    for (auto it = range.first; it != range.second; ++it)
        if (it->second->is_just(key)) return it->second;
    std::vector<std::shared_ptr<Entry>> alike;  // to compare may run Python, and another thread change the table
    for (auto it = range.first; it != range.second; ++it) alike.push_back(it->second);
    for (const auto& each : alike) {
        const int is = each->is_of(key);
        if (is < 0) return nullptr;
        if (is == 1) return each;
    }
    return table.entries.emplace(hash, std::make_shared<Entry>(key))->second;
}

}  // namespace

Table& table_of(PyObject* owner) { return *static_cast<Table*>(PyCapsule_GetPointer(owner, TABLE)); }

bool is_recording() { return recording != 0; }

PyObject* in_python(const Table& table, PyObject* const* arguments, Py_ssize_t count) {
    return untraced(table.compute.get(), arguments, count);
}

PyObject* replay(Table& table, const Key& key, PyObject* const* arguments, Py_ssize_t count) {
    const std::shared_ptr<Entry> entry = entry_of(table, key);
    if (!entry) return nullptr;
    if (entry->plan) {
        const Shared plan = entry->plan;  // stays, whoever forgets it meanwhile
        PyObject* result = nullptr;
        const int done = run(*plan, arguments, int(count), result, key.addresses.data());
        if (done < 0) return nullptr;
        if (done == 1) {
            ++replays;
            return result;
        }
    } else if (!entry->refused && ++entry->calls > patience) {
        return recorded(table, *entry, arguments, count);
    }
    return in_python(table, arguments, count);
}

PyObject* computed(Table& table, PyObject* const* arguments, Py_ssize_t count) {
    Key key;
    const int described = !is_recording() ? describe(key, arguments, count) : 0;
    if (described < 0) return nullptr;
    if (described == 1) return replay(table, key, arguments, count);
    return in_python(table, arguments, count);
}

namespace {

PyObject* replayed(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
    Table& table = table_of(self);
    if (names != nullptr && PyTuple_Size(names) != 0)  // PyTorch's dispatcher hands over that there are none
        return call(table.compute.get(), arguments, size_t(count), names);
    return computed(table, arguments, count);
}

PyMethodDef replayed_method = {"replayed", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(replayed)),
                               METH_FASTCALL | METH_KEYWORDS, "The function that it was made of, by its plans."};

}  // namespace

PyObject* make(PyObject*, PyObject* arguments) {
    PyObject *compute, *record;
    if (!PyArg_ParseTuple(arguments, "OO", &compute, &record)) return nullptr;
    auto* table = new Table{Ref::of(compute), Ref::of(record), generation, {}};
    const Ref owner(PyCapsule_New(table, TABLE, [](PyObject* capsule) {
        delete static_cast<Table*>(PyCapsule_GetPointer(capsule, TABLE));
    }));
    return owner ? PyCFunction_NewEx(&replayed_method, owner.get(), nullptr) : nullptr;
}

PyObject* count(PyObject*, PyObject*) { return PyLong_FromUnsignedLongLong(replays); }

PyObject* record_after(PyObject*, PyObject* calls) {
    const long before = patience, wanted = PyLong_AsLong(calls);
    if (wanted == -1 && PyErr_Occurred()) return nullptr;
    patience = wanted;
    return PyLong_FromLong(before);
}

PyObject* forked(PyObject*, PyObject*) {
    recording = 0;
    Py_RETURN_NONE;
}

PyObject* forget(PyObject*, PyObject*) {
    ++generation;
    Py_RETURN_NONE;
}

}  // namespace host
