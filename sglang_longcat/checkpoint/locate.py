"""Where --model-path leads: a directory, or a model that the Hugging Face hub's cache holds.

Owns: this look-up and its error. It downloads nothing.
"""

from __future__ import annotations

from pathlib import Path


def locate(model: str) -> Path:
    """The directory of a path or of a downloaded hub model. Raises FileNotFoundError."""
    if Path(model).is_dir():
        return Path(model)
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{model} is neither a directory nor a downloaded model ({type(error).__name__}). "
            "Download it, or give the directory."
        ) from error
