"""How a process that trains on a CPU keeps its memory."""

CPU_MALLOC_SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
"""Environment of a process that trains on a CPU: glibc keeps freed activations for the next step.

Fresh pages from the kernel take a tenth of the time of a step on a CPU.
"""
