"""`sglang-longcat quantize`: makes a 4-bit checkpoint of the bf16 one, without data.

- `selection`: which layers are quantised, and `quantization_config`.
- `rounding`: one weight to its packed tensors by AutoRound, and how far it moved.
- `shards`: one file at a time, and the index.
- `convert`: the whole checkpoint; nothing that loads exists before the end.
- `command`: the command line, the progress bar and the tables.

The result is read back by `checkpoint.packing`, as a server reads it.
"""
