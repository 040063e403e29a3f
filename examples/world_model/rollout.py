"""Roll the world model out and see it: BF16 and the chosen settings side by side, with times and memory.

    python examples/world_model/rollout.py [--config FILE.yaml] [--mode clip|still|motion]

Settings come from the file, then from environment variables OWL_<NAME>; README.md lists them. Everything is written
to one folder: rollout.gif and frames/ (truth, BF16, settings), and record.json (resolved settings, times, memory).
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from world.checkpoint import DEFAULT, load_checkpoint
from world.data import MODES, make_clips
from world.files import write_json
from world.judge import psnr
from world.pictures import save_frames, save_gif
from world.plan import bf16_request
from world.rollout import rollout
from world.settings import request

REFUSED = 2  # exit code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file of settings (default: the recommended profile)")
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT, help="(default: the example's)")
    parser.add_argument("--out", type=Path, default=Path("runs/world_model/rollout"), help="(default: %(default)s)")
    parser.add_argument("--mode", choices=MODES, default="clip", help="controls of a clip, none, or a steady motion")
    parser.add_argument("--frames", type=int, default=64, help="frames of the clip, context included (default: 64)")
    parser.add_argument("--context", type=int, default=8, help="true frames at the start (default: 8)")
    parser.add_argument("--forced", action="store_true", help="make each frame from the true history")
    parser.add_argument("--clip-seed", type=int, default=7, help="of the clip (default: 7)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    try:
        run(options)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(REFUSED)


def run(options: argparse.Namespace) -> None:
    requested = request(options.config, os.environ)
    model = load_checkpoint(options.checkpoint)
    clips = make_clips(options.clip_seed, 1, options.frames, options.mode, model.config.frame)
    arguments = {
        "device": options.device,
        "context": options.context,
        "forced": options.forced,
        "seed": options.seed,
    }
    frames, record = rollout(model, clips, requested, **arguments)
    baseline, baseline_record = rollout(model, clips, bf16_request(requested), **arguments)
    truth = clips.frames[:, options.context :]
    record["psnr_db"] = {
        "truth": psnr(frames, truth).mean().item(),
        "bf16": psnr(frames, baseline).mean().item(),
        "bf16_to_truth": psnr(baseline, truth).mean().item(),
    }
    record["bf16"] = baseline_record
    record["clip"] = {"mode": options.mode, "seed": options.clip_seed, "frames": options.frames}
    columns = [truth[0], baseline[0], frames[0]]
    save_frames(columns, options.out / "frames")
    save_gif(columns, options.out / "rollout.gif")
    write_json(record, options.out / "record.json")
    print(summary(record, options.out))


def summary(record: dict, out: Path) -> str:
    """Return what a person sees at the end of a run."""
    lines = [f"note: {notice}" for notice in record["resolved"]["notices"]]
    if (audit := record["transform"]) and record["requested"]["settings"]["mxfp_list"]:
        lines.append(audit["table"])
    for name, part in (("BF16", record["bf16"]), ("settings", record)):
        times = part["summary"]
        if times["frames"]:
            lines.append(
                f"{name:9} {times['fps_total']:7.1f} FPS, {times['fps_pipeline']:7.1f} FPS pipeline; "
                f"cache {part['memory']['window_bytes'] / 2**10:.0f} KiB; cold frames {part['cold_frames']}"
            )
    decibels = record["psnr_db"]
    lines.append(
        f"PSNR over {len(record['frames'])} frames: BF16 to truth {decibels['bf16_to_truth']:.1f} dB, "
        f"settings to truth {decibels['truth']:.1f} dB, settings to BF16 {decibels['bf16']:.1f} dB"
    )
    lines.append(f"{out / 'rollout.gif'}: truth, BF16, settings")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)  # of a CPU: for tensors of one clip more gain nothing, and lose beside other programs
    main()
