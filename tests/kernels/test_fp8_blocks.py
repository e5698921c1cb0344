import pytest
import torch

from longcat_kernels import fp8_blocks


def quantised(weight):
    q = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scales = torch.full(fp8_blocks.grid(*weight.shape), float("nan"))
    fp8_blocks.quantise_into(weight, q, scales)
    return q, scales


def one_by_one(weight):
    """Every block by itself."""
    q, scales = torch.empty_like(weight, dtype=torch.float32), []
    for i in range(0, weight.shape[0], 128):
        for j in range(0, weight.shape[1], 128):
            block = weight[i : i + 128, j : j + 128].float()
            scales.append(block.abs().max() / 448)
            q[i : i + 128, j : j + 128] = (block / scales[-1]).to(torch.float8_e4m3fn).float()
    return q, torch.stack(scales).view(fp8_blocks.grid(*weight.shape))


@pytest.mark.parametrize("shape", [(1, 1), (128, 256), (300, 130), (1024, 288), (1029, 128)])
def test_the_copy_is_the_checkpoints_format(shape):
    """Red if a block reaches into another, if rows that fill no block or no chunk of rows are left
    out, or if the scale is another than the block's largest value over 448."""
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.05).bfloat16()
    q, scales = quantised(weight)
    wanted_q, wanted_scales = one_by_one(weight)
    assert torch.equal(scales, wanted_scales)
    assert torch.equal(q.float(), wanted_q)
    largest = weight.float().abs().max()
    assert (fp8_blocks.widen(q, scales) - weight.float()).abs().max() <= largest * 2**-4


def test_a_block_of_zeros_stays_zero():
    """Red if it is divided by its largest value."""
    assert (fp8_blocks.widen(*quantised(torch.zeros(130, 130))) == 0).all()


def test_rows_of_a_rank_are_rows_of_the_whole():
    """Red if a shard that begins at a block's edge is rounded in another way than in one piece."""
    weight = torch.randn(1280, 160).bfloat16()
    whole, parts = quantised(weight)[0], [quantised(half)[0] for half in weight.chunk(2)]
    assert torch.equal(torch.cat(parts).float(), whole.float())


def test_the_product():
    """Red if a scale meets another block's values. One rounding to bf16 behind fp32 sums."""
    weight, x = torch.randn(300, 200) / 14, torch.randn(3, 200).bfloat16()
    q, scales = quantised(weight)
    exact = x.double() @ fp8_blocks.widen(q, scales).double().t()
    got = fp8_blocks.linear(x, q, scales)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-5)


def test_other_shapes_are_refused():
    q, scales = quantised(torch.zeros(130, 130))
    with pytest.raises(ValueError, match=r"expected a copy of the same shape and scales \(1, 1\)"):
        fp8_blocks.quantise_into(torch.zeros(128, 128), q, scales)
