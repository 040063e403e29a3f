"""Runs that start servers: the profiles of a run, their starts, and the HTTP client."""
