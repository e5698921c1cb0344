"""The files of the published checkpoint, which all of this room reads without SGLang.

`layout` is the table of tensors, `headers` reads what files say they contain, `check` compares the
two before anything is loaded, `reader` passes tensors to the model, `locate` finds a downloaded
model, and `generation` has the recommended sampling. Owns: where the chat template and the
published config lie.
"""

from pathlib import Path

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
PUBLISHED_CONFIG = Path(__file__).with_name("lite_config.json")  # of LongCat-Flash-Lite
