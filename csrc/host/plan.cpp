#include "plan.h"

#include <utility>
#include <vector>

#include "tensor.h"

namespace host {

namespace {

constexpr int MOST_REGISTERS = 96, MOST_GIVEN = 96;  // of a plan, and to one of its calls

enum Kind { CONSTANT, REGISTER, ADDRESS, LIST, TUPLE };

/* An argument of a call, or a result: a constant, what stands in a register, the address of that tensor, or several. */
struct Node {
    Kind kind;
    int number;
    Ref constant;
    std::vector<Node> items;
};

using Kernel = int64_t (*)(const uint64_t*);

/* An argument of a kernel: a constant, or the address of the tensor or the number in a register. */
struct Word {
    uint64_t constant;
    int number;
    bool is_number;
};

struct Step {
    Ref callable;  // of Python; or none, and a kernel
    std::vector<Node> arguments;
    Ref names;
    bool several = false;      // whether the result is a sequence, to be taken apart
    Ref wanted;                // what the result must be, if it must
    bool fresh = false;        // whether the result is memory that nobody has written to yet
    std::vector<int> results;  // registers; -1 is dropped
    Kernel kernel = nullptr;
    std::vector<Word> words;
    int64_t expected = 0;
    bool brief = false;  // whether the kernel takes no longer than to let other threads of Python run and come back
    std::vector<int> last;  // registers that nothing reads after this step
};

}  // namespace

struct Plan {
    std::vector<Step> steps;
    Node result;
    int registers;
    Ref kept;  // what must stay as long
};

namespace {

/* The registers of a plan that runs: tensors, and their addresses as far as they were asked for. */
class Registers {
public:
    Registers(int registers, PyObject* const* arguments, int inputs, const uint64_t* known) : count(registers) {
        for (int i = 0; i < count; ++i) {
            held[i] = i < inputs ? arguments[i] : nullptr;
            addresses[i] = i < inputs && known != nullptr ? known[i] : 0;
            Py_XINCREF(held[i]);
        }
    }
    ~Registers() {
        for (int i = 0; i < count; ++i) Py_XDECREF(held[i]);
    }
    Registers(const Registers&) = delete;
    PyObject* operator[](int number) const { return held[number]; }
    void set(int number, PyObject* owned) {
        Py_XDECREF(std::exchange(held[number], owned));
        addresses[number] = 0;
    }
    bool address(int number, uint64_t& found) {
        uint64_t& here = addresses[number];
        if (here == 0 && !find_address(held[number], here)) return false;
        found = here;
        return true;
    }

private:
    int count;
    PyObject* held[MOST_REGISTERS];
    uint64_t addresses[MOST_REGISTERS];
};

/* The object that a node stands for, owned. */
PyObject* made(const Node& node, Registers& registers) {
    switch (node.kind) {
        case CONSTANT:
            Py_INCREF(node.constant.get());
            return node.constant.get();
        case REGISTER:
            Py_INCREF(registers[node.number]);
            return registers[node.number];
        case ADDRESS: {
            uint64_t found;
            return registers.address(node.number, found) ? PyLong_FromUnsignedLongLong(found) : nullptr;
        }
        default:
            break;
    }
    const Py_ssize_t count = Py_ssize_t(node.items.size());
    Ref several(node.kind == LIST ? PyList_New(count) : PyTuple_New(count));
    for (Py_ssize_t i = 0; several && i < count; ++i) {
        PyObject* const item = made(node.items[size_t(i)], registers);
        if (item == nullptr) return nullptr;
        if (node.kind == LIST)
            PyList_SetItem(several.get(), i, item);
        else
            PyTuple_SetItem(several.get(), i, item);
    }
    return several.release();
}

/* 1 if done, 0 if a kernel answers unlike it did, -1 on an error. */
int run_kernel(const Step& step, Registers& registers) {
    uint64_t words[MOST_GIVEN];
    for (size_t i = 0; i < step.words.size(); ++i) {
        const Word& word = step.words[i];
        words[i] = word.constant;
        if (word.is_number)
            words[i] = PyLong_AsUnsignedLongLongMask(registers[word.number]);
        else if (word.number >= 0 && !registers.address(word.number, words[i]))
            return -1;
    }
    if (step.brief) return step.kernel(words) == step.expected;
    PyThreadState* const state = PyEval_SaveThread();
    const int64_t answer = step.kernel(words);
    PyEval_RestoreThread(state);
    return answer == step.expected;
}

int run_call(const Step& step, Registers& registers) {
    struct Given {
        PyObject* objects[MOST_GIVEN];
        size_t count = 0;
        ~Given() {
            while (count > 0) Py_DECREF(objects[--count]);
        }
    } given;
    for (const Node& node : step.arguments) {
        PyObject* const object = made(node, registers);
        if (object == nullptr) return -1;
        given.objects[given.count++] = object;
    }
    const size_t named = step.names ? size_t(PyTuple_Size(step.names.get())) : 0;
    Ref result(call(step.callable.get(), given.objects, given.count - named, step.names.get()));
    if (!result) return -1;
    if (step.wanted) return PyObject_RichCompareBool(result.get(), step.wanted.get(), Py_EQ);
    if (!step.several) {
        if (step.results[0] >= 0) registers.set(step.results[0], result.release());
        return 1;
    }
    for (size_t i = 0; i < step.results.size(); ++i) {
        PyObject* const item = PySequence_GetItem(result.get(), Py_ssize_t(i));
        if (item == nullptr) return -1;
        Ref owned(item);
        if (step.results[i] >= 0) registers.set(step.results[i], owned.release());
    }
    return 1;
}

/* As `run`; `spoil`, if given, gets all fresh memory. */
int run_spoilt(const Plan& plan, PyObject* const* arguments, int count, PyObject*& result, const uint64_t* addresses,
               PyObject* spoil) {
    Registers registers(plan.registers, arguments, count, addresses);
    for (const Step& step : plan.steps) {
        const int done = step.kernel != nullptr ? run_kernel(step, registers) : run_call(step, registers);
        if (done != 1) return done;
        if (spoil != nullptr && step.fresh && step.results[0] >= 0)
            if (!Ref(call_one(spoil, registers[step.results[0]]))) return -1;
        for (const int number : step.last) registers.set(number, nullptr);
    }
    result = made(plan.result, registers);
    return result == nullptr ? -1 : 1;
}

/* From what Python recorded: see `Plan` of src/optiacts/recording.py. */

Node node_from(PyObject* told) {  // (kind, number, constant, items)
    Node node{Kind(PyLong_AsLong(PyTuple_GetItem(told, 0))), int(PyLong_AsLong(PyTuple_GetItem(told, 1))),
              Ref::of(PyTuple_GetItem(told, 2)), {}};
    PyObject* const items = PyTuple_GetItem(told, 3);
    for (Py_ssize_t i = 0; i < PyTuple_Size(items); ++i) node.items.push_back(node_from(PyTuple_GetItem(items, i)));
    return node;
}

std::vector<int> numbers_from(PyObject* told) {
    std::vector<int> numbers;
    for (Py_ssize_t i = 0; i < PyTuple_Size(told); ++i) numbers.push_back(int(PyLong_AsLong(PyTuple_GetItem(told, i))));
    return numbers;
}

Step step_from(PyObject* told) {
    Step step;
    PyObject* const first = PyTuple_GetItem(told, 0);
    step.last = numbers_from(PyTuple_GetItem(told, 1));
    if (PyLong_CheckExact(first)) {  // (kernel, last, ((constant, register, is_number), ...), expected, brief)
        step.kernel = reinterpret_cast<Kernel>(PyLong_AsVoidPtr(first));
        PyObject* const words = PyTuple_GetItem(told, 2);
        for (Py_ssize_t i = 0; i < PyTuple_Size(words); ++i) {
            PyObject* const word = PyTuple_GetItem(words, i);
            step.words.push_back({PyLong_AsUnsignedLongLongMask(PyTuple_GetItem(word, 0)),
                                  int(PyLong_AsLong(PyTuple_GetItem(word, 1))), PyTuple_GetItem(word, 2) == Py_True});
        }
        step.expected = PyLong_AsLongLong(PyTuple_GetItem(told, 3));
        step.brief = PyTuple_GetItem(told, 4) == Py_True;
        return step;
    }
    // (callable, last, arguments, names, results, several, fresh, (wanted,) or ())
    step.callable = Ref::of(first);
    PyObject* const arguments = PyTuple_GetItem(told, 2);
    for (Py_ssize_t i = 0; i < PyTuple_Size(arguments); ++i)
        step.arguments.push_back(node_from(PyTuple_GetItem(arguments, i)));
    PyObject* const names = PyTuple_GetItem(told, 3);
    if (PyTuple_Size(names) > 0) step.names = Ref::of(names);
    step.results = numbers_from(PyTuple_GetItem(told, 4));
    step.several = PyTuple_GetItem(told, 5) == Py_True;
    step.fresh = PyTuple_GetItem(told, 6) == Py_True;
    PyObject* const wanted = PyTuple_GetItem(told, 7);
    if (PyTuple_Size(wanted) == 1) step.wanted = Ref::of(PyTuple_GetItem(wanted, 0));
    return step;
}

/* Null where it takes more than there is room for; on an error too, with Python's exception set. */
Shared plan_from(PyObject* told) {  // (steps, result, registers, kept)
    auto plan = std::make_shared<Plan>();
    PyObject* const steps = PyTuple_GetItem(told, 0);
    for (Py_ssize_t i = 0; i < PyTuple_Size(steps); ++i) plan->steps.push_back(step_from(PyTuple_GetItem(steps, i)));
    plan->result = node_from(PyTuple_GetItem(told, 1));
    plan->registers = int(PyLong_AsLong(PyTuple_GetItem(told, 2)));
    plan->kept = Ref::of(PyTuple_GetItem(told, 3));
    bool fits = !PyErr_Occurred() && plan->registers <= MOST_REGISTERS;
    for (const Step& step : plan->steps)
        fits = fits && step.arguments.size() <= MOST_GIVEN && step.words.size() <= MOST_GIVEN;
    return fits ? plan : nullptr;
}

const char* const PLAN = "optiacts.host.plan";

}  // namespace

int run(const Plan& plan, PyObject* const* arguments, int count, PyObject*& result, const uint64_t* addresses) {
    return run_spoilt(plan, arguments, count, result, addresses, nullptr);
}

const Shared* plan_of(PyObject* capsule) { return static_cast<const Shared*>(PyCapsule_GetPointer(capsule, PLAN)); }

PyObject* make_plan(PyObject*, PyObject* arguments) {
    Shared plan = plan_from(arguments);
    if (PyErr_Occurred()) return nullptr;
    if (!plan) Py_RETURN_NONE;
    return PyCapsule_New(new Shared(std::move(plan)), PLAN, [](PyObject* capsule) {
        delete static_cast<Shared*>(PyCapsule_GetPointer(capsule, PLAN));
    });
}

PyObject* check(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    const Shared* plan = plan_of(arguments[0]);
    if (plan == nullptr) return nullptr;
    PyObject* result = nullptr;
    const int done = run_spoilt(**plan, arguments + 2, int(count - 2), result, nullptr, arguments[1]);
    if (done < 0) return nullptr;
    return done == 1 ? result : Ref::of(Py_NotImplemented).release();
}

}  // namespace host
