"""A stream for the experts that leaves some of the GPU's multiprocessors (SMs) to the dense branch.

Expert blocks that fill the GPU live some 90 us, and a kernel of the dense branch, whatever its
priority, begins where one ends: 10 to 30 us late at 8 requests. On 120 of an H200's 132 SMs, a CUDA
green context, experts read memory as fast, and the branch begins at once: a layer takes 455 us
instead of 462 at 8 requests and 945 instead of 954 at 30. A step of one token, or one window of 4,
gains nothing. Owns that stream and which steps take it; what runs beside what is `branch`'s.
"""

from __future__ import annotations

import functools
import logging

import torch

from sglang_longcat import env

logger = logging.getLogger(__name__)
LEAST_TOKENS = 5
HOPPER_SMS = 132  # of an H100, H200 or H800: what this was measured on
RESERVED = 12
GRANULE = 8  # SMs of a green context come in eights on Hopper


def experts_stream(tokens: int) -> torch.cuda.Stream | None:
    """For the experts of a step of so many tokens; None where they may fill the GPU."""
    return prepare_partition() if tokens >= LEAST_TOKENS else None


def prepare_partition() -> torch.cuda.Stream | None:
    """The stream on this process's GPU, which has to exist before a graph is captured."""
    if not torch.cuda.is_available():
        return None
    return _stream(torch.cuda.current_device())


def sms_for_experts(total: int) -> int | None:
    """Of `total`; None: all of them, without a partition."""
    reserved = env.reserved_sms()
    if reserved is None:
        reserved = RESERVED if total == HOPPER_SMS else 0
    if reserved >= total - GRANULE:
        raise ValueError(
            f"LONGCAT_RESERVED_SMS={reserved}, but this GPU has {total} multiprocessors: expected "
            f"fewer than {total - GRANULE}, or 0 to share them all."
        )
    return (total - reserved) // GRANULE * GRANULE if reserved else None


@functools.cache
def _stream(device: int) -> torch.cuda.Stream | None:
    """Once a process: the context lives as long as its stream is used, to the end."""
    sms = sms_for_experts(torch.cuda.get_device_properties(device).multi_processor_count)
    if sms is None:
        return None
    from torch.cuda.green_contexts import GreenContext

    try:
        context = GreenContext(num_sms=sms, device_id=device)
        stream = context.Stream()
    except RuntimeError as error:  # an old driver, or a GPU that is shared in another way
        logger.warning(
            "The experts share all multiprocessors with the dense branch, which costs about 1 %% "
            "of a step: CUDA made no green context (%s). LONGCAT_RESERVED_SMS=0 asks for none.",
            error,
        )
        return None
    _contexts.append(context)
    return stream


_contexts: list[object] = []  # destroyed with their last reference
