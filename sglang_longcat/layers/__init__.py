"""The layers that LongCat-Flash-Lite has and SGLang lacks, or computes wrongly."""
