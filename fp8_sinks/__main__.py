"""Run the command `fp8-sinks` as `python -m fp8_sinks`."""

from fp8_sinks.cli import main

main()
