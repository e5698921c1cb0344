"""The layers that SGLang lacks, computes wrongly, or launches in too many kernels.

`decoder_layer` is one layer, top to bottom. Its parts: `attention`, `linear` (dense MLP and
projections) and `moe`. Its norms: `norm`, which combines `deferred_sum`, `allreduce_norm` and
`fp8_inputs`. `branches` runs the two branches at the same time, `sum_groups` says which ranks sum,
`lazy_allocator` spares a launch.

A function `use_<...>` beside each operation decides in which steps it runs. It asks `step` and
`operations`.
"""
