"""Whether an error says that there is not enough memory."""

from __future__ import annotations

import torch

ADVICE = "there is not enough memory: a smaller --batch, --width or --T takes less"
_WORDS = ("DefaultCPUAllocator: ", "std::bad_alloc", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
"""Of what torch's allocator for the processor, C++, CUDA, and its libraries say in a plain `RuntimeError`."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is too small; not whether it is misused, as an illegal access on a GPU does: that is a fault."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
