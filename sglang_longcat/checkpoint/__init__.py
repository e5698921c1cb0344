"""The published checkpoint's files: names and shapes (`layout`), headers, `check` and `reader`."""

from pathlib import Path

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
PUBLISHED_CONFIG = Path(__file__).with_name("lite_config.json")  # of LongCat-Flash-Lite
