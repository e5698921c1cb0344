"""Compiles and loads every kernel variant that serving uses, before the first request does.

    python -m longcat_kernels.warm_up           # `make kernels`
    python -m longcat_kernels.warm_up --fp8     # for block FP8: DeepGEMM's kernels too
    python -m longcat_kernels.warm_up --int4    # for 4 bits, symmetric, in groups of 128

With a GPU it compiles for that GPU. Without one it compiles for Hopper, into Triton's cache on disk
(TRITON_CACHE_DIR), where a server on a Hopper GPU finds the kernels. A server runs the same while
it starts. With --fp8, DeepGEMM's cache (SGLANG_DG_CACHE_DIR) gets the kernels of one Hopper GPU, by
`deep_gemm_cache`.

Owns: the list of ops and the sizes that decide variants. Each op's `warm_up.py` knows its variants:
Triton makes one per dtype, constexpr, and integer argument that is 1 or divisible by 16.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from longcat_kernels import lite, row_layout
from longcat_kernels.compile_only import compile_only
from longcat_kernels.deep_gemm_cache import HOPPER_SMS, default_folder, lite_gemms
from longcat_kernels.packed_linear import workloads as packed_linear
from longcat_kernels.small_linear import workloads as small_linear

OPS = (
    "ngram",
    "moe_router",
    "small_experts",
    "expert_sum",
    "mla_prologue",
    "mla_decode",
    "kv_expand",
    "kv_store",
    "small_linear",
    "packed_linear",
)
HOPPER_SM = 90
TOKENS = 32_768  # more than any chunk or cached prefix has by default


@dataclass(frozen=True)
class Sizes:
    """The model's and the server's constants; the defaults are LongCat-Flash-Lite's."""

    dtype: torch.dtype = torch.bfloat16  # of activations
    hidden: int = lite.HIDDEN
    experts: int = lite.EXPERTS  # identity experts included
    routed: int = lite.ROUTED
    top_k: int = lite.TOP_K
    heads: int = lite.HEADS  # of attention, on one rank
    split_tokens: int | None = None  # the largest step for `mla_decode`; None: `is_faster` decides
    context: int = 0  # the server's longest, which `mla_decode.is_faster` asks for
    q_lora: int = lite.Q_LORA
    kv_lora: int = lite.KV_LORA
    nope: int = lite.NOPE  # columns of a head's query without rotary embedding
    rope: int = lite.ROPE  # and with it
    values: int = lite.VALUES  # columns of a head
    orders: tuple[int, ...] = lite.NGRAM_ORDERS  # one for each n-gram table
    eos: int = len(lite.EOS)  # how many end-of-sequence tokens
    ring: int = lite.RING
    columns: int = lite.NGRAM_COLUMNS  # of an n-gram row, on one rank
    row_format: row_layout.Format = "plain"  # of the n-gram tables
    fp8_inputs: bool = False  # of projections and experts, whose weights are block FP8
    expert_columns: int = lite.EXPERT_FFN  # of an expert, on one rank
    packed_group: int | None = None  # inputs of a scale, of projections in 4 bits (symmetric)
    fp8_kv: bool = False  # rows of the KV pool
    windows: tuple[int, ...] = (1,)  # tokens a request feeds in decode, and in verification
    projections: tuple[small_linear.Shape, ...] = small_linear.LITE  # on one rank


def warm_up(device: torch.device | str, sizes: Sizes | None = None) -> int:
    """Launches every variant once on small inputs, and waits for the GPU. Returns how many variants
    were not loaded yet. Inside `compile_only` the device is "cpu"."""
    sizes = sizes or Sizes()
    with compilations() as compiled:
        for op in OPS:
            importlib.import_module(f"longcat_kernels.{op}.warm_up").warm_up(device, sizes)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return len(compiled)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects the names of the kernel variants that Triton compiles, or loads from its cache on
    disk, inside the `with` block. Other users of Triton's hook are still called.
    """
    from triton import knobs

    names: list[str] = []
    before = knobs.runtime.jit_post_compile_hook

    def note(*args: object, **kwargs: object) -> None:
        names.append(str(kwargs["repr"]))
        if before is not None:
            before(*args, **kwargs)

    knobs.runtime.jit_post_compile_hook = note
    try:
        yield names
    finally:
        knobs.runtime.jit_post_compile_hook = before


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--window", type=int, nargs="+", default=[1, 2, 3, 4], help="tokens a request and step"
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--fp8", action="store_true", help="for a checkpoint in block FP8")
    weights.add_argument("--int4", action="store_true", help="for one in 4 bits")
    parser.add_argument("--sms", type=int, default=HOPPER_SMS, help="multiprocessors of the GPU")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of the longest prefill chunk")
    options = parser.parse_args(arguments)
    sizes = Sizes(
        windows=tuple(options.window),
        fp8_inputs=options.fp8,
        packed_group=packed_linear.GROUP if options.int4 else None,
    )
    begin = time.perf_counter()
    if torch.cuda.is_available():
        count, where = warm_up("cuda", sizes), torch.cuda.get_device_name()
    else:
        with compile_only(HOPPER_SM):
            count, where = warm_up("cpu", sizes), f"no GPU here: compiled for sm_{HOPPER_SM}"
    print(f"{count} kernel variants in {time.perf_counter() - begin:.1f} s ({where})")
    if options.fp8:
        fill_deep_gemm(options.tokens, options.sms)


def fill_deep_gemm(tokens: int, sms: int) -> None:
    """BackgroundError if a kernel cannot be compiled. Needs no GPU, and uses none."""
    from longcat_kernels.deep_gemm_cache.process import Compilation

    folder = default_folder()
    compilation = Compilation(lite_gemms(tokens), sms, folder)
    seconds = compilation.join()
    print(
        f"DeepGEMM: {compilation.total} kernels in {folder}, {compilation.compiled} of them "
        f"compiled now, in {seconds:.1f} s (for a Hopper GPU with {sms} multiprocessors)"
    )


if __name__ == "__main__":
    main()
