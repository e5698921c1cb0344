"""What the plugin needs of SGLang, what it tells SGLang at start-up, and what it refuses.

`contract`: is this the SGLang that we support? `attributes`: every attribute of it that we use.
`hf_config`: the class that SGLang parses config.json with. `memory_share`: our
--mem-fraction-static. `kernel_warm_up`: compiles our kernels before the first request.
`refused_flags`: server flags that this model does not support. `refusals`: the tables of them.
`refuse_early`: where they are refused before SGLang starts a process.
"""
