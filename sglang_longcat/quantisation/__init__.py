"""Which 4-bit formats the model is served in, read from `quantization_config` of config.json.

- `packed`: the description that the rest of the package asks: packing, group size, zero points, and
  which modules are quantised.
- `formats`: how AutoRound, GPTQ, AWQ and compressed-tensors write it, and what is refused.

Knows neither SGLang nor torch, and no file but config.json. `config.QuantConfig` holds the result,
`checkpoint.layout` derives names and shapes from it, `checkpoint.packing` the numbers.
"""
