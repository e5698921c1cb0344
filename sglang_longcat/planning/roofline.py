"""GPUs by their data sheets, and the shortest decode step that their memory and cores allow.

Owns: these figures, the lower bound of a step, and a projection of a measured step to other numbers
of GPUs. The bound ignores launches, communication and latency, so real steps take longer: on one
H200 the measured TPOT is 2.5 times the bound at batch 1, and 1.4 times at batch 30.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sglang_longcat.config import LongcatConfig
from sglang_longcat.planning import sizing


@dataclass(frozen=True)
class Gpu:
    """`memory`: GiB that SGLang finds free before it loads; bandwidth in TB/s; bf16 and fp8: TFLOPS
    without sparsity; `shown`: GiB by the driver, where so little is left that the difference
    decides; None: as `memory`."""

    memory: float
    bandwidth: float
    bf16: float
    fp8: float | None = None
    shown: float | None = None


# memory: measured for H100 and H200. For an RTX 4090 and 5090 what PyTorch shows in its messages,
# 23.64 and 31.5 GiB, without 0.7 for the CUDA context. For the others 98.5 % of the driver's total.
GPUS = {
    "RTX-4090-24G": Gpu(memory=22.9, bandwidth=1.01, bf16=165, fp8=330, shown=24564 / 1024),
    "RTX-5090-32G": Gpu(memory=30.8, bandwidth=1.79, bf16=209, fp8=419, shown=32607 / 1024),
    "L40S-48G": Gpu(memory=44.3, bandwidth=0.864, bf16=362, fp8=733),
    "A100-80G": Gpu(memory=78.8, bandwidth=2.04, bf16=312),
    "H20-96G": Gpu(memory=94.0, bandwidth=4.0, bf16=148, fp8=296),
    "H20-141G": Gpu(memory=139.1, bandwidth=4.8, bf16=148, fp8=296),
    "H800-80G": Gpu(memory=78.5, bandwidth=3.35, bf16=989, fp8=1979),
    "H100-80G": Gpu(memory=78.5, bandwidth=3.35, bf16=989, fp8=1979),
    "H200": Gpu(memory=139.1, bandwidth=4.8, bf16=989, fp8=1979),
    "B200": Gpu(memory=176.0, bandwidth=7.7, bf16=2250, fp8=4500),
    "B300": Gpu(memory=264.0, bandwidth=7.7, bf16=2250, fp8=4500),
}


def step_seconds(
    gpu: Gpu,
    config: LongcatConfig,
    *,
    batch: int,
    context: int,
    ranks: int = 1,
    attention_dp: int = 1,
    kv_dtype: sizing.KvDtype = "bf16",
) -> float:
    """The lower bound of a decode step: its bytes' reading time or its arithmetic's, the longer."""
    multiplies_fp8 = config.quant is not None and config.quant.is_block_fp8
    fast = gpu.fp8 if multiplies_fp8 and gpu.fp8 else gpu.bf16
    read = sizing.step_bytes(
        config,
        batch=batch,
        context=context,
        ranks=ranks,
        attention_dp=attention_dp,
        kv_dtype=kv_dtype,
    )
    computed = sizing.step_flops(config, batch=batch, context=context, ranks=ranks)
    return max(read / (gpu.bandwidth * 1e12), computed / (fast * 1e12))


def all_reduces(config: LongcatConfig) -> int:
    """All-reduces of a decode step with tensor parallelism: four a layer (two attentions, the first
    dense MLP, the second one together with the experts) and one of the embedding."""
    return 4 * config.num_layers + 1


def busiest_rank_experts(
    config: LongcatConfig, *, batch: int, ranks: int, draws: int = 256
) -> float:
    """Expected number of a layer's experts that the busiest of `ranks` reads with uniform routing,
    the mean of `draws` seeded draws. The other ranks wait for it at the layer's sum."""
    generator, per_rank = random.Random(0), config.n_routed_experts // ranks
    total = 0
    for _ in range(draws):
        reached = {
            slot
            for _ in range(batch)
            for slot in generator.sample(range(config.router_logits), config.moe_topk)
            if slot < config.n_routed_experts
        }
        total += max(sum(expert // per_rank == rank for expert in reached) for rank in range(ranks))
    return total / draws


def rank_bytes(config: LongcatConfig, *, batch: int, context: int, ranks: int) -> float:
    """What the busiest rank reads in a decode step with TP and EP over all `ranks`."""
    even = sizing.step_bytes(config, batch=batch, context=context, ranks=ranks)
    expert_bytes = sizing.parts(config).experts / config.n_routed_experts
    busiest = busiest_rank_experts(config, batch=batch, ranks=ranks)
    return even + expert_bytes * (busiest - sizing.experts_read(config, batch) / ranks)


def projected_seconds(
    gpu: Gpu,
    config: LongcatConfig,
    *,
    batch: int,
    context: int,
    ranks: int,
    one_gpu: float,
    all_reduce: float,
) -> float:
    """A PROJECTION of the decode step on `ranks` GPUs, not a measurement:

        one_gpu - bytes(1) / bandwidth + bytes(ranks) / bandwidth + all_reduces * all_reduce

    where one_gpu is the time of a measured step on one GPU, and all_reduce that of one measured sum
    over `ranks`, in seconds. It assumes that the time one GPU spends beyond reading (launches,
    latency, small kernels) stays the same, and that a rank waits for others only because of their
    experts.
    """
    first = rank_bytes(config, batch=batch, context=context, ranks=1)
    share = rank_bytes(config, batch=batch, context=context, ranks=ranks)
    saved = (first - share) / (gpu.bandwidth * 1e12)
    return one_gpu - saved + all_reduces(config) * all_reduce
