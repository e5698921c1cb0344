"""sglang-longcat: the SGLang plugin that serves LongCat-Flash-Lite. Imports nothing heavy."""

__version__ = "0.1.0"
