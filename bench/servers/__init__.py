"""Runs that start servers: the plan of each start, its steps, and the HTTP client."""
