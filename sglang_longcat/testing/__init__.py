"""Small random checkpoints and dummy routing, for tests, demos and speed measurements.

`tiny` writes a checkpoint: `values` draws its numbers, `tokenizer` makes its tokenizer.
`dummy_routing` changes the weights of `--load-format dummy`. `smaller_gpu` makes a GPU look like
one with less memory. `engine_flags` has engine arguments that several tests and benchmarks use.
"""
