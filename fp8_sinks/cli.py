"""The command `fp8-sinks`. A subcommand's module is imported only when it runs, since vLLM is slow to import."""

from importlib import import_module

import click

# Name -> (module, short help as in the command itself).
COMMANDS = {
    "bench": ("bench.cli", "Measure servers and kernels, and make reports from the result files."),
    "cache": (
        "fp8_sinks.cache",
        "List, build and wipe the caches of compiled kernels, FlashInfer's and our own.",
    ),
    "certify": (
        "bench.certify.command",
        "Certify our decode kernels on this GPU, so that profile `fp8` uses the fastest right decoder.",
    ),
    "doctor": (
        "vllm_launch.doctor.command",
        "Report what would keep `bench serving baseline fp8` from running on this machine, each with its remedy.",
    ),
    "patch": (
        "flashinfer_patches.cli",
        "Patch FlashInfer for attention sinks with an FP8 KV cache, or revert the patch.",
    ),
    "roofline": (
        "bench.roofline.command",
        "Predict from bytes alone how fast a model decodes with a BF16 and an FP8 KV cache, and where FP8 pays.",
    ),
    "scales": (
        "vllm_launch.scales.command",
        "Measure the scales of an FP8 or int8 KV cache, for the key `kv_scales` of a profile.",
    ),
    "serve": (
        "vllm_launch.cli",
        "Serve a model with PROFILE (baseline, fp8, fp8-skip-sliding, fp8-stock, or a .yaml file) until Ctrl-C.",
    ),
}


class Commands(click.Group):
    """A click group of COMMANDS that imports a command only to run it."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        return getattr(import_module(COMMANDS[name][0]), name) if name in COMMANDS else None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fp8-sinks")
def main() -> None:
    """Serve gpt-oss with attention sinks and an FP8 KV cache, and prove that the answers hold.

    Exit codes: 0 done; 1 failed; 2 usage; 3 an accuracy gate failed; 4 this machine or environment lacks something.
    """
