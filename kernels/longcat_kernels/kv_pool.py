"""What operations know of SGLang's KV pool, which is the engine's business otherwise."""

PADDING_SLOT = 0  # rows that fill up a CUDA graph's batch name it, all of them
