"""Serve: profiles, preflight, the server's life, and the plugin that vLLM loads."""
