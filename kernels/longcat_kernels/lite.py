"""LongCat-Flash-Lite's sizes: the numbers that our kernels are tuned, tested and warmed up for.

They are the published config.json's, and a test compares the two. A server takes its sizes from its
checkpoint instead. This file imports nothing, so that code without torch may read it
(`sglang_longcat/planning`).
"""

HIDDEN = 3072
EPS = 1e-5  # of every RMSNorm
VOCAB = 131_072
CONTEXT = 327_680  # tokens
EOS = (2,)

# Multi-head latent attention.
HEADS = 32
Q_LORA = 1536  # columns of the queries' latent
KV_LORA = 512  # columns of the latent that keys and values share
NOPE, ROPE = 128, 64  # columns of a head's query without and with rotary embedding
VALUES = 128  # columns of a head's value
ROPE_THETA = 5_000_000.0

# The two kinds of MLP.
FFN = 6144  # columns of the dense one
EXPERT_FFN = 1024  # columns of one expert
ROUTED = 256  # experts that have weights
EXPERTS = ROUTED + 128  # and identity experts, which return their input
TOP_K = 12
ROUTED_SLOTS = 8  # of TOP_K on average; the others are identity experts
ROUTED_SCALE = 6.0

# The N-gram embedding: tables 0 to 3 hash two tokens, 4 to 7 three, 8 to 11 four.
NGRAM_ORDERS = (2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4)
NGRAM_TABLES = len(NGRAM_ORDERS)
NGRAM_N = max(NGRAM_ORDERS)
NGRAM_RATIO = 78  # rows of a table to words of the vocabulary
NGRAM_ROWS = tuple(NGRAM_RATIO * VOCAB + 2 * i + 1 for i in range(NGRAM_TABLES))
NGRAM_TOTAL_ROWS = sum(NGRAM_ROWS)
NGRAM_COLUMNS = HIDDEN // NGRAM_TABLES  # 256

# Ours, not the model's.
RING = 16  # tokens in each slot's ring, 64 bytes: 3 predecessors and a verify window of at most 13
FP8_ROW_SCALE_BYTES = 16  # behind an fp8 n-gram row: its fp32 scale, padded to a 16-byte word
INT4_GROUP = 32  # values of an int4 n-gram row that share a scale: a rank's columns of 8 ranks
INT4_ROW_ALIGN = 16  # bytes that an int4 row is padded to, so that it consists of 16-byte words
