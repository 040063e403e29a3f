"""Attention backends for vLLM. A backend is registered by its qualified name; vLLM imports it when it is chosen."""
