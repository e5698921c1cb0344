"""What docs/measurements/kv-cache.md says about scales."""

import torch

from benchmarks import kv_error
from longcat_kernels import kv_rows


def test_the_chosen_scales_lose_least():
    """Red if the table would be made with other scales than the pool has, or if others were better:
    columns of uneven size, as the norm's weights make them."""
    latents = dict(kv_error.random_latents())["N(0, 1), columns times exp(2 N(0, 1))"][:256]
    lost = {name: kv_error.errors(latents, *choice)[0] for name, choice in kv_error.CHOICES.items()}
    assert min(lost, key=lost.__getitem__) == "one for 128 values, fp32"
    rows = torch.cat((latents, latents[:, :64]), dim=1)
    stored = kv_rows.unpack(kv_rows.pack(rows, 512), 512)[:, :512].float()
    exact = latents.float()
    ours = kv_error.relative(stored - exact, exact)
    assert abs(ours - lost["one for 128 values, fp32"]) < 1e-4
