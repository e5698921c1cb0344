"""Which head the draft gets, which calls read the FP8 copy, and that the copy follows the target's
head. Engines: tests/model/test_draft_head.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.logits_processor import LogitsProcessor

from longcat_kernels.small_linear import reference
from sglang_longcat.layers import step
from sglang_longcat.models.longcat_flash_nextn import LongcatFlashForCausalLMNextN
from sglang_longcat.speculation import draft_head
from sglang_longcat.testing.values import block_fp8

ROWS, COLUMNS = 300, 160


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A server on Hopper whose kernel is faster for up to 8 tokens of any shape."""
    deterministic = SimpleNamespace(enable_deterministic_inference=False)
    platform = SimpleNamespace(is_sm90=True)
    monkeypatch.setattr(step, "get_exec", lambda: SimpleNamespace(deterministic=deterministic))
    monkeypatch.setattr(draft_head, "get_platform", lambda: platform)
    monkeypatch.setattr(draft_head, "is_faster", lambda op, weight, tokens: tokens <= 8)
    monkeypatch.setattr(draft_head, "_followers", [])
    monkeypatch.delenv("LONGCAT_DRAFT_HEAD", raising=False)
    monkeypatch.delenv("LONGCAT_SGLANG_OPS", raising=False)
    return SimpleNamespace(deterministic=deterministic, platform=platform)


def filled(weight: torch.Tensor) -> draft_head.Fp8Head:
    head = draft_head.Fp8Head(*weight.shape)
    head.fill(weight)
    return head


@pytest.mark.parametrize("shape", [(1, 1), (128, 256), (300, 130), (1024, 288), (2077, 128)])
def test_the_copy_is_block_fp8(shape: tuple[int, int]) -> None:
    """Red if a block reaches into another, if the last rows, which fill no block or no chunk, are
    left out, or if the scale is another than the block's largest value over 448."""
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.05).bfloat16()
    head, (wanted, scales) = filled(weight), block_fp8(weight, block=128)
    assert torch.equal(head.scales, scales)
    assert torch.equal(head.weight.float()[:, : shape[1]], wanted.float())
    assert (head.weight.float()[:, shape[1] :] == 0).all()


def test_rows_of_a_rank_are_rows_of_the_whole() -> None:
    """Red if a rank rounds its slice of the head in another way than one GPU rounds the whole."""
    weight = torch.randn(2560, 160).bfloat16()
    whole, halves = filled(weight), [filled(half) for half in weight.chunk(2)]
    assert torch.equal(torch.cat([half.weight for half in halves]).float(), whole.weight.float())
    assert torch.equal(torch.cat([half.scales for half in halves]), whole.scales)


@pytest.mark.parametrize(
    ("wish", "hopper", "faster", "made"),
    [
        ("", True, True, True),
        ("", False, True, False),
        ("", True, False, False),
        ("fp8", False, False, True),
        ("bf16", True, True, False),
    ],
)
def test_who_gets_a_copy(
    settings: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    wish: str,
    hopper: bool,
    faster: bool,
    made: bool,
) -> None:
    """Red if memory is taken for a copy that no step would read, or a wish is not followed."""
    monkeypatch.setenv("LONGCAT_DRAFT_HEAD", wish)
    settings.platform.is_sm90 = hopper
    monkeypatch.setattr(draft_head, "is_faster", lambda *_: faster)
    assert (draft_head.make_fp8_head(ROWS, COLUMNS) is not None) == made


def test_what_excludes_the_copy(settings: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if the kernel is switched off and the copy stays, or if deterministic inference drafts
    with sums that depend on the batch."""
    monkeypatch.setenv("LONGCAT_DRAFT_HEAD", "fp8")
    monkeypatch.setenv("LONGCAT_SGLANG_OPS", "small_linear")
    assert draft_head.make_fp8_head(ROWS, COLUMNS) is None
    monkeypatch.delenv("LONGCAT_SGLANG_OPS")
    settings.deterministic.enable_deterministic_inference = True
    assert draft_head.make_fp8_head(ROWS, COLUMNS) is None


def test_an_unknown_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGCAT_DRAFT_HEAD", "int8")
    with pytest.raises(ValueError, match="'int8': expected one of auto, fp8, bf16"):
        draft_head.make_fp8_head(ROWS, COLUMNS)


@pytest.mark.parametrize(
    ("wish", "reads"), [("auto", {1: True, 8: True, 9: False}), ("fp8", {32: True, 33: False})]
)
def test_few_tokens_read_the_copy(
    monkeypatch: pytest.MonkeyPatch, wish: str, reads: dict[int, bool]
) -> None:
    """Red if more tokens than the kernel takes read the copy, an idle rank calls it with none, or
    other calls miss the exact head. Logits keep the dtype of the hidden states."""
    monkeypatch.setenv("LONGCAT_DRAFT_HEAD", wish)
    monkeypatch.setattr(LogitsProcessor, "_compute_lm_head", lambda *_, out=None: "exact")
    processor = draft_head.DraftLogitsProcessor.__new__(draft_head.DraftLogitsProcessor)
    torch.nn.Module.__init__(processor)
    processor.fp8_head = head = filled(torch.randn(ROWS, COLUMNS))
    for tokens, is_copy in {0: False, **reads}.items():
        hidden = torch.randn(tokens, COLUMNS)
        logits = processor._compute_lm_head(hidden, None)
        if is_copy:
            x = torch.nn.functional.pad(hidden.bfloat16(), head.padding)
            assert torch.equal(logits, reference.linear(x, head.weight, head.scales).float())
        else:
            assert logits == "exact"
    processor.fp8_head = None
    assert processor._compute_lm_head(torch.randn(1, COLUMNS), None) == "exact"


def test_the_copy_is_no_part_of_the_checkpoint() -> None:
    """Red if loaders, dummy weights among them, see the copy as a tensor to fill."""
    head = draft_head.Fp8Head(ROWS, COLUMNS)
    assert not head.state_dict()
    assert [name for name, _ in head.named_buffers()] == ["weight", "scales"]
    assert str(draft_head.Fp8Head(131072, 3072)) == (
        "block-FP8 copy of 131,072 rows (0.38 GiB) for up to 32 tokens, the target's for more"
    )


@pytest.mark.parametrize("token_map", [None, torch.arange(0, ROWS, 3)])
def test_an_update_reaches_the_copy(token_map: torch.Tensor | None) -> None:
    """Red if the draft goes on with the head that was there before an update, in the copy or in the
    rows of a token map; if memory that CUDA graphs read moves; or if a draft that is gone keeps the
    target reading its head."""
    old, new = torch.randn(ROWS, COLUMNS), torch.randn(ROWS, COLUMNS)
    target = torch.nn.Parameter(old.clone(), requires_grad=False)
    draft = LongcatFlashForCausalLMNextN.__new__(
        LongcatFlashForCausalLMNextN, SimpleNamespace(is_longcat_lite=True)
    )
    torch.nn.Module.__init__(draft)
    rows = target if token_map is None else target.data[token_map]
    draft.own_embedding, draft.token_map = True, token_map
    draft.lm_head, draft.logits_processor = torch.nn.Module(), torch.nn.Module()
    draft.logits_processor.fp8_head = copy = draft_head.Fp8Head(*rows.shape)
    draft.set_embed_and_head(None, rows)
    before = copy.weight.data_ptr(), draft.lm_head.weight.data_ptr()
    target.data.copy_(new)
    draft_head.head_changed(lambda: target)
    wanted = filled(new if token_map is None else new[token_map])
    assert torch.equal(copy.weight.float(), wanted.weight.float())
    assert torch.equal(copy.scales, wanted.scales)
    assert torch.equal(draft.lm_head.weight, new if token_map is None else new[token_map])
    assert (copy.weight.data_ptr(), draft.lm_head.weight.data_ptr()) == before
    del draft
    draft_head.head_changed(lambda: pytest.fail("nobody follows"))
