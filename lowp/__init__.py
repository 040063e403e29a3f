"""Low-precision numerics and kernels: functions on tensors; knows no vLLM and no FlashInfer."""
