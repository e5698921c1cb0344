"""The sizes that a server readies its kernels for are those of its model and its flags."""

import json

import torch

from longcat_kernels.warmup import Sizes
from sglang_longcat.config import LongcatConfig
from sglang_longcat.estimate import PUBLISHED
from sglang_longcat.warm_up import kernel_sizes

LITE = json.loads(PUBLISHED.read_text())


def test_the_published_model_is_the_default_of_make_kernels():
    config = LongcatConfig.from_dict(LITE)
    assert kernel_sizes(config, torch.bfloat16, draft_tokens=None) == Sizes()


def test_verify_windows_and_several_eos():
    config = LongcatConfig.from_dict({**LITE, "eos_token_id": [2, 5]})
    found = kernel_sizes(config, torch.float16, draft_tokens=4)
    assert (found.windows, found.eos, found.dtype) == ((1, 4), 2, torch.float16)
