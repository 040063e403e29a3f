"""What the launcher and our attention backend inside vLLM agree on. Imports nothing."""

# Environment variables that the launcher sets and the plugin reads; without the launcher a user may set them.
PLUGIN = "FP8_SINKS_PLUGIN"  # with any value the plugin is on
DECODER = "FP8_SINKS_DECODER"  # one of DECODERS
KV_SCALES = "FP8_SINKS_KV_SCALES"  # a scale file
KV_FORMAT = "FP8_SINKS_KV_FORMAT"  # one of KV_FORMATS: what --kv-cache-dtype fp8 stores; e4m3 if unset
RECORD = "FP8_SINKS_RECORD"  # the JSON file that the plugin writes: what its backend resolved to
CERTIFYING = "FP8_SINKS_CERTIFYING"  # set by `certify` for its own servers: they run without a certificate

# What the backend takes.
VLLM_RELEASES = ("0.26", "0.33")
DECODERS = ("lowp", "flashinfer")
KV_CACHE_DTYPES = ("auto", "bfloat16", "fp8", "fp8_e4m3", "int8_per_token_head")  # of vLLM's --kv-cache-dtype
KV_FORMATS = ("e4m3", "int8")
HEAD_DIMS = (64, 128)

INT8 = "int8_per_token_head"  # the KV cache dtype of int8 with a scale per token and head
