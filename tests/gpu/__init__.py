"""The GPU backend on a GPU; on a machine without one, whatever Triton's interpreter can run on the CPU.

    python -m pytest tests/gpu          needs torch, triton and pytest alone; see docs/gpu.md

A suite of its own, with its own pytest.ini: Triton decides once in a process whether to interpret, and a machine with
a GPU may have none of what the other tests need.
"""
