"""Makes `--load-format dummy` weights route like a trained model, for speed measurements (a hook).

Why: SGLang fills dummy weights with tiny uniform numbers. Every token then goes to the same
experts, and the experts' memory traffic, which is most of a decode step, disappears. FP8 weights
get random bits here: 98 % of SGLang's numbers round to zero in FP8, and multiplying zeros takes
less power, which raises the clock. Their scales stay at SGLang's 1. 4-bit weights get random bits
too, because SGLang fills floating-point tensors only and leaves them as it found the memory. Their
scales stay at SGLang's numbers of at most 1e-3. Four bits are a value from -8 to 7, so weights are
at most 8e-3, and outputs are finite and not zero. Marlin reorders the weights after this hook. The
hook has a plugin entry point of its own, so that it works for SGLang's in-tree class too. It does
nothing unless LONGCAT_DUMMY_ROUTING=1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang_longcat import env

if TYPE_CHECKING:
    import torch
    from torch import nn

_SIGN_AND_MANTISSA, _HALF = 0b1_0000_111, 0b0_0110_000  # of float8_e4m3fn
# of W4A16 layers: `weight_packed`, and `w13_weight_packed` and `w2_weight_packed` of experts
_PACKED = "weight_packed"
TARGET = "sglang.srt.model_loader.weight_utils.initialize_dummy_weights"


def register() -> None:
    if not env.dummy_routing():
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(TARGET, spread_routing, HookType.AFTER)


def spread_routing(_result: None, model: nn.Module, *_args: object, **_kwargs: object) -> None:
    """Give router logits a standard deviation of 3, and word rows a norm of sqrt(hidden).
    Seeded."""
    import torch

    routers = 0
    for name, parameter in model.named_parameters():
        generator = torch.Generator(parameter.device).manual_seed(routers)
        if name.endswith("router.classifier.weight"):
            parameter.data.normal_(0, 3 / parameter.shape[1] ** 0.5, generator=generator)
            routers += 1
        elif parameter.dtype == torch.float8_e4m3fn and "embed_tokens" not in name:
            fill_fp8(parameter.data, generator)
        elif name.endswith(_PACKED):
            parameter.data.view(torch.uint8).random_(0, 256, generator=generator)
        elif name.endswith("e_score_correction_bias"):
            parameter.data.zero_()
        elif "embed_tokens.word_embe" in name or name.endswith("embed_tokens.weight"):
            parameter.data.normal_(0, 1, generator=generator)
    # Printed, not logged, because an offline Engine logs errors only. `benchmarks/engine.py` reads
    # this line.
    print(f"dummy routing: {routers} routers of {describe(model)}", flush=True)


def fill_fp8(weight: torch.Tensor, generator: torch.Generator) -> None:
    """Random signs and mantissas, 0.5 to 0.94, in place. Sums over thousands of columns stay small
    all the same, because dummy norm weights are 1e-3."""
    import torch

    bits = weight.view(torch.uint8)
    bits.random_(0, 256, generator=generator).bitwise_and_(_SIGN_AND_MANTISSA).bitwise_or_(_HALF)


def describe(model: nn.Module) -> str:
    """The class that is being measured, as `module.Name`."""
    return f"{type(model).__module__}.{type(model).__name__}"
