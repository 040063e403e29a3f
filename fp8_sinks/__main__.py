"""`python -m fp8_sinks`: the same as the command `fp8-sinks`."""

from fp8_sinks.cli import main

main()
