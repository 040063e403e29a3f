"""`fp8-sinks`: the command."""

import click

from bench.cli import bench
from bench.roofline.command import roofline
from flashinfer_patches.cli import patch
from fp8_sinks.cache import cache
from vllm_launch.cli import serve
from vllm_launch.doctor import doctor


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fp8-sinks")
def main() -> None:
    """Serve gpt-oss with attention sinks and an FP8 KV cache, and prove that the answers hold.

    Exit codes: 0 done; 1 unexpected; 2 usage; 10 profile; 11 model; 12 address; 13 memory; 14 disk; 15 software;
    20 server; 21 resolved; 30 requests; 31 gate; 32 file; 33 compare; 40 target; 41 version; 42 edited; 43 superseded;
    44 git; 45 write; 46 lock; 47 series; 48 cache; 49 fetch; 50 build. Of doctor: 0 ready; 1 warnings; 2 cannot run.
    """


main.add_command(serve)
main.add_command(bench)
main.add_command(roofline)
main.add_command(doctor)
main.add_command(patch)
main.add_command(cache)
