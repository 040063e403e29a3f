"""`fp8-sinks doctor`: what would keep a server from running well here."""
