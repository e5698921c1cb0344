"""How much of a latent an FP8 KV row loses, for several kinds of scales.

    python -m benchmarks.kv_error

Latents of LongCat-nano's held-out text, of all its attentions, and random ones. The error is the
root of the mean square of what is lost, relative to that of the values; "scores" is the same of
products with random queries, relative to theirs. Needs no GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from longcat_kernels import kv_rows, lite
from longcat_kernels.fp8_layout import GROUP, LARGEST
from sglang_longcat.assets import nano
from sglang_longcat.reference import ReferenceModel, attention

WINDOWS = 4  # of held-out text
Scale = Callable[[torch.Tensor], torch.Tensor]


def fp32(values: torch.Tensor) -> torch.Tensor:
    """[..., group] -> [..., 1]: the largest magnitude becomes 448."""
    return values.abs().amax(dim=-1, keepdim=True) / LARGEST


def bf16(values: torch.Tensor) -> torch.Tensor:
    return fp32(values).bfloat16().float()


def power(values: torch.Tensor) -> torch.Tensor:
    return fp32(values).log2().ceil().exp2()


def one(values: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(values[..., :1])


CHOICES: dict[str, tuple[Scale, int]] = {
    "none (SGLang's pool)": (one, lite.KV_LORA),
    "one a token, fp32": (fp32, lite.KV_LORA),
    "one a token, bf16": (bf16, lite.KV_LORA),
    "one a token, power of two": (power, lite.KV_LORA),
    "one for 128 values, fp32": (fp32, GROUP),
    "one for 128 values, bf16": (bf16, GROUP),
    "one for 128 values, power of two": (power, GROUP),
}


def restored(latents: torch.Tensor, scale: Scale, group: int) -> torch.Tensor:
    """What a cache with these scales gives back, in bf16 as the products read it."""
    groups = latents.float().unflatten(-1, (-1, group))
    scales = scale(groups)
    fitting = (groups / scales).clamp(-LARGEST, LARGEST)  # bf16's rounding may pass the limit
    return (fitting.to(kv_rows.FP8).float() * scales).bfloat16().float().flatten(-2)


def errors(latents: torch.Tensor, scale: Scale, group: int) -> tuple[float, float]:
    exact = latents.float()
    lost = restored(latents, scale, group) - exact
    queries = torch.randn(exact.shape[-1], 256, generator=torch.Generator().manual_seed(0))
    return relative(lost, exact), relative(lost @ queries, exact @ queries)


def relative(lost: torch.Tensor, exact: torch.Tensor) -> float:
    return float(lost.square().mean().sqrt() / exact.square().mean().sqrt())


def random_latents() -> Iterator[tuple[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(4096, lite.KV_LORA, generator=random)
    yield "N(0, 1)", normal.bfloat16()
    # Columns of very different sizes, as norm weights with outliers make them.
    columns = torch.randn(lite.KV_LORA, generator=random).mul(2).exp()
    yield "N(0, 1), columns times exp(2 N(0, 1))", (normal * columns).bfloat16()


def sources() -> Iterator[tuple[str, torch.Tensor]]:
    yield "LongCat-nano", nano_latents()
    yield from random_latents()


def nano_latents() -> torch.Tensor:
    """[attentions * tokens, C] bf16: normed and scaled, as the pool keeps them."""
    kept: list[torch.Tensor] = []
    expand = attention.Mla._key_value

    def note(mla: attention.Mla, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        c = mla.config
        latent = torch.nn.functional.linear(x, mla.kv_a)[..., : c.kv_lora_rank]
        kept.append((mla.kv_norm(latent) * c.kv_scale).bfloat16())
        return expand(mla, x)

    with mock.patch.object(attention.Mla, "_key_value", note):
        windows = json.loads((nano() / "held_out.json").read_text())["windows"]
        model = ReferenceModel.from_checkpoint(nano())
        for window in windows[:WINDOWS]:
            model.hidden(window)
    return torch.cat(kept)


def main() -> None:
    for source, latents in sources():
        print(f"\n{source}: {len(latents)} latents\n\n| scales | values | scores |\n|---|---|---|")
        for name, (scale, group) in CHOICES.items():
            values, scores = errors(latents, scale, group)
            print(f"| {name} | {values:.4%} | {scores:.4%} |")


if __name__ == "__main__":
    main()
