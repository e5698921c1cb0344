"""What our kernels know of SGLang's KV pool. Everything else about the pool is the engine's."""

PADDING_SLOT = 0  # every row that only fills up a CUDA graph's batch names this slot
