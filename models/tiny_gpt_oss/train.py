"""Train the tiny gpt-oss: tokenizer, model, measurements and card, in one command.

    python models/tiny_gpt_oss/train.py --corpus DIR --out DIR [--minutes 2.5] [--device auto] [--resume]

DIR of --corpus is what corpus.py wrote. A checkpoint is written to --out every minute; --resume goes on from
it. --minutes counts training alone: the tokenizer and the measurements take about a minute more.
"""

import argparse
import json
import math
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from architecture import END_OF_ANSWER, END_OF_TEXT, PAD, SPECIALS, make_tokenizer, make_trainable_model
from measure import report
from transformers import GenerationConfig, GptOssForCausalLM, PreTrainedTokenizerFast

SEED = 1
# Tokens a step, tokens a row, and the share of steps that have rows of that length.
PLANS = {
    "cuda": (32768, (512, 1024, 2048, 4096), (0.35, 0.40, 0.15, 0.10)),
    "cpu": (2048, (256, 512, 1024, 2048), (0.55, 0.30, 0.10, 0.05)),
}
# How often a document of each source is picked to go on filling a row.
PICKS = {"gate": 0.06, "near": 0.06, "country": 0.14, "wordnet": 0.48, "python": 0.26}
PEAK_RATE = 2e-3
SINK_RATE, FLOOR = 2.0, 0.02  # times the peak: the sinks' rate, and the last one
WARMUP = 0.02  # of the time
WEIGHT_DECAY = 0.1
CHECKPOINT_SECONDS, REPORT_SECONDS = 60, 10

Documents = dict[str, list[np.ndarray]]


def log(*words: object) -> None:
    """Print a line of progress."""
    print(*words, file=sys.stderr, flush=True)


def read_corpus(corpus: Path) -> tuple[PreTrainedTokenizerFast, Documents]:
    """The tokenizer, and the training documents of each source as int16 ids with <|endoftext|> at the end."""
    lines = (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    specials = re.compile("|".join(map(re.escape, SPECIALS)))
    tokenizer = make_tokenizer(specials.sub("\n", record["text"]) for record in records)
    documents: Documents = {source: [] for source in PICKS}
    encoded = tokenizer.backend_tokenizer.encode_batch([record["text"] for record in records])
    for record, encoding in zip(records, encoded, strict=True):
        documents[record["source"]].append(np.array([*encoding.ids, END_OF_TEXT], dtype=np.int16))
    return tokenizer, documents


def make_row(documents: Documents, length: int, rng: np.random.Generator) -> np.ndarray:
    """One row of `length` ids: documents one after another, half of the long ones from somewhere inside."""
    row, filled = np.empty(length, dtype=np.int16), 0
    sources, shares = list(PICKS), list(PICKS.values())
    while filled < length:
        pool = documents[sources[rng.choice(len(sources), p=shares)]]
        document = pool[rng.integers(len(pool))]
        if len(document) > 1024 and rng.random() < 0.5:
            document = document[rng.integers(len(document) - 512) :]
        piece = document[: length - filled]
        row[filled : filled + len(piece)] = piece
        filled += len(piece)
    return row


def make_optimizer(model: GptOssForCausalLM, device: str) -> torch.optim.AdamW:
    """AdamW with decay on matrices only, and a rate of their own for the sinks (`scale` times the rest's)."""
    sinks = [p for name, p in model.named_parameters() if name.endswith("sinks")]
    matrices = [p for name, p in model.named_parameters() if p.dim() >= 2 and not name.endswith("bias")]
    chosen = {id(p) for p in sinks + matrices}
    remaining = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY, "scale": 1.0},
        {"params": remaining, "weight_decay": 0.0, "scale": 1.0},
        {"params": sinks, "weight_decay": 0.0, "scale": SINK_RATE},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=device == "cuda")


def rate(progress: float) -> float:
    """Learning rate at `progress` from 0 to 1: a linear warm-up, then a cosine down to FLOOR of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return PEAK_RATE * min(1.0, progress / WARMUP + 1e-3) * (FLOOR + (1 - FLOOR) * cosine)


def save_checkpoint(path: Path, model: GptOssForCausalLM, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Write everything that --resume needs."""
    partial = path.with_name(path.name + ".partial")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}, partial)
    partial.replace(path)


def train(
    model: GptOssForCausalLM,
    documents: Documents,
    seconds: float,
    device: str,
    checkpoint: Path,
    resume: bool,
) -> dict:
    """Train in place for `seconds`, earlier tries counted in; return {seconds, steps, tokens}."""
    tokens, lengths, shares = PLANS[device]
    optimizer = make_optimizer(model, device)
    state = {"seconds": 0.0, "steps": 0, "tokens": 0}
    if resume and checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    rng = np.random.default_rng([SEED, state["steps"]])
    started = time.monotonic() - state["seconds"]
    last_saved = last_logged = state["seconds"]
    model.train()
    while state["seconds"] < seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate(state["seconds"] / seconds) * group["scale"]
        length = int(rng.choice(lengths, p=shares))
        rows = np.stack([make_row(documents, length, rng) for _ in range(tokens // length)])
        ids = torch.from_numpy(rows).to(device).long()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False, output_router_logits=True).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        state = {
            "seconds": time.monotonic() - started,
            "steps": state["steps"] + 1,
            "tokens": state["tokens"] + ids.numel(),
        }
        if state["seconds"] - last_logged > REPORT_SECONDS:
            last_logged = state["seconds"]
            log(
                f"{state['seconds']:6.0f} s  step {state['steps']}  {state['tokens']:,} tokens",
                f"loss {loss.item():.3f}",
            )
        if state["seconds"] - last_saved > CHECKPOINT_SECONDS:
            last_saved = state["seconds"]
            save_checkpoint(checkpoint, model, optimizer, state)
    return state


def save(model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the BF16 model and its tokenizer to `out`, file by file under their final names."""
    partial = out / "partial"
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial, save_jinja_files=False)
    GenerationConfig(bos_token_id=END_OF_TEXT, eos_token_id=END_OF_ANSWER, pad_token_id=PAD).save_pretrained(partial)
    settings = json.loads((partial / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name all versions of transformers know
    (partial / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    for path in partial.iterdir():
        path.replace(out / path.name)
    partial.rmdir()


def main() -> None:
    """Read the corpus, train, save, measure; stdout gets the path of the metrics."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder that corpus.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--minutes", type=float, default=2.5, help="training time; longer over-fits")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    arguments = parser.parse_args()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    tokenizer, documents = read_corpus(arguments.corpus)
    counts = {source: sum(map(len, pieces)) for source, pieces in documents.items()}
    log("tokens by source:", counts)
    model = make_trainable_model().to(device)
    state = train(model, documents, 60 * arguments.minutes, device, out / "checkpoint.pt", arguments.resume)
    save(model, tokenizer, out)
    for name, folder in (
        ("heldout.jsonl", arguments.corpus),
        ("NOTICES.txt", arguments.corpus),
        ("README.md", Path(__file__).parent),
    ):
        if (folder / name).resolve() != (out / name).resolve():
            shutil.copyfile(folder / name, out / name)
    training = {
        **state,
        "seconds": round(state["seconds"], 1),
        "seed": SEED,
        "corpus_tokens": sum(counts.values()),
        "device": "CPU" if device == "cpu" else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sources": json.loads((arguments.corpus / "sources.json").read_text()),
    }
    report(out, training, device)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    print(out / "metrics.json")


if __name__ == "__main__":
    main()
