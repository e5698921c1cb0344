"""sglang-longcat: the SGLang plugin that serves LongCat-Flash-Lite. Imports nothing heavy."""

from sglang_longcat.tool_parser.message import parse_model_response

__all__ = ["__version__", "parse_model_response"]
__version__ = "0.1.0"
