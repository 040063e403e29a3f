"""The command `fp8-sinks`: it joins the command groups of the other packages, and their kernel caches."""
