"""Files that ship with the package: `nano`, a small trained checkpoint.

Owns: where they are. training/nano made them, the recipes `*-nano` serve them, and ci/accuracy
measures them. Besides the checkpoint's own files, `nano` has held_out.json (windows of text that
was not trained on) and golden.json (greedy answers).
"""

from __future__ import annotations

from pathlib import Path

NANO = Path(__file__).with_name("nano")


def nano() -> Path:
    """The directory of LongCat-nano. Raises FileNotFoundError if its weights are not there."""
    if not (NANO / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{NANO} has no model.safetensors; expected the LongCat-nano that ships with the "
            "package. Install the wheel again, or train it: python -m training.nano."
        )
    return NANO
