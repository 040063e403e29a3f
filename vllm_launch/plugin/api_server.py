"""vLLM's API server with its arguments, ready sooner: `python -m vllm_launch.plugin.api_server --model ...`.

vLLM spawns its other processes, and each of them runs this module once more, by another name, before anything else.
Python's garbage collector takes a sixth of the time in which they import vLLM and finds nothing, so it waits until
`plugin.register` calls it back.
"""

import gc
import runpy

gc.disable()

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
