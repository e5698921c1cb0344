"""What another version of SGLang would break: `python -m ci.check_sglang VERSION`."""
