"""What fits on a GPU and how fast it can be, from config.json alone. Needs no SGLang and no torch.

`sizing`: bytes of weights, tables and KV cache. `reserve`: memory that a running server needs
beside them. `placement`: do the n-gram tables go to the GPU or to the host? `plan` puts these
together. `roofline`: GPUs and the shortest decode step. `agreement`: flags that contradict
config.json. `estimate`: the command that prints all of it.
"""
