"""The layers that LongCat-Flash-Lite has and SGLang lacks, or computes wrongly.

`decoder_layer` is one layer, top to bottom. Its parts: `attention`, `linear` (dense MLP and
projections) and `moe`. Its norms: `norm`, which combines `deferred_sum`, `allreduce_norm` and
`fp8_inputs`. `branches` runs the two branches at the same time, `sum_groups` says which ranks sum,
`lazy_allocator` spares a launch. Which kernel runs in which step: a predicate `use_<operation>`
beside the operation, which asks `step` and `operations`.
"""
