"""What `import sgl_kernel` falls back to on a machine where no compiled library of it loads.

Owns: the decision whether that is acceptable. It is only when SGLang's CPU engine was asked for:
`sgl_kernel` then imports, and an operator that nobody provides fails by name when it is called.
Plain serving of an MLA model calls none: attention and experts come from `sglang_longcat.cpu`.

sgl_kernel/load_utils.py tries its own `common_ops` libraries first and this module name last, so
with a working CUDA driver this file is never imported.
"""

import os

if os.environ.get("SGLANG_USE_CPU_ENGINE") != "1":
    raise ImportError(
        "sgl_kernel found no compiled library that loads (its own errors are listed above), and "
        "SGLANG_USE_CPU_ENGINE=1 is not set, so sglang-longcat does not stand in for it. Repair "
        "the CUDA installation, or set SGLANG_USE_CPU_ENGINE=1 to serve on the CPU."
    )
