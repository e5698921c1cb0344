"""The N-gram embedding: tables, look-up, and the tokens that came before, per request slot.

`embedding` is the layer. `cache` owns the ring of recent tokens and the look-up of a forward;
`seeds` reads predecessors from the scheduler's requests; `state` is what hooks see of both.
`tables` stores the tables, on the GPU or in `host_memory`, where `sharing` lets ranks use one copy;
`gather_time` measures the look-up.
"""
