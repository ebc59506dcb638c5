"""Recognises errors that mean too little memory."""

from __future__ import annotations

import torch

ADVICE = "there is not enough memory: a smaller --batch, --width or --T takes less"
_WORDS = ("DefaultCPUAllocator: ", "std::bad_alloc", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
"""Phrases by which torch's CPU allocator, C++, CUDA and its libraries report it in a plain `RuntimeError`."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means too little memory. An illegal access on a GPU is a fault of another kind."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
