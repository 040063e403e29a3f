"""One point of the grid under load: llama-benchy, its events, failed requests, the server's counters."""
