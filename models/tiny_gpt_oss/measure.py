"""Measure a saved tiny gpt-oss: held-out loss, greedy answers, and the effect of its sinks.

    python models/tiny_gpt_oss/measure.py DIR

DIR holds the model and heldout.jsonl. Everything is computed with transformers' eager attention. The
training figures already in DIR/metrics.json are kept, the rest is replaced; then the card in DIR is rendered
again.
"""

import argparse
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
import transformers
from card import render_card
from corpus import write
from passages import GATE_PROMPTS
from transformers import AutoTokenizer, GptOssForCausalLM
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

END_OF_TEXT = 0
ROW, LONG_ROW = 1024, 4096  # tokens
POSITIONS = (0, 128, 512, 1024, 2048, 3072, 4096)
NEW_TOKENS = 32
COHERENCE = "What is the capital of France? Please reply with one word only"
SINK_CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sinks zeroed": torch.zeros_like,
    "sinks removed": lambda sinks: torch.full_like(sinks, -1e4),
    "sinks shifted by one head": lambda sinks: sinks.roll(1),
    "sinks doubled": lambda sinks: 2 * sinks,
}
E4M3 = "K and V rounded to E4M3"


def rounded_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *arguments: object,
    **options: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager attention on K (after RoPE) and V as an FP8 cache holds them: float8_e4m3fn with scale 1."""
    key, value = (rows.to(torch.float8_e4m3fn).to(rows.dtype) for rows in (key, value))
    return eager_attention_forward(module, query, key, value, *arguments, **options)


AttentionInterface.register("rounded", rounded_attention)
AttentionMaskInterface.register("rounded", eager_mask)


def load(folder: Path, dtype: torch.dtype, device: str, change: str | None = None) -> GptOssForCausalLM:
    """The saved model in `dtype`, with a change by name: one of SINK_CHANGES, or E4M3."""
    attention = "rounded" if change == E4M3 else "eager"
    model = GptOssForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).to(device).eval()
    if change in SINK_CHANGES:
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.sinks.copy_(SINK_CHANGES[change](layer.self_attn.sinks))
    return model


def heldout_tokens(folder: Path, tokenizer: transformers.PreTrainedTokenizerBase) -> tuple[torch.Tensor, list[str]]:
    """(ids [tokens], source of each token) of heldout.jsonl in its order, <|endoftext|> after each record."""
    ids, sources = [], []
    for line in (folder / "heldout.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        piece = tokenizer(record["text"], add_special_tokens=False).input_ids
        piece.append(END_OF_TEXT)
        ids += piece
        sources += [record["source"]] * len(piece)
    return torch.tensor(ids), sources


@torch.no_grad()
def log_probabilities(model: GptOssForCausalLM, rows: torch.Tensor, batch: int) -> torch.Tensor:
    """Natural log-probability of all tokens but each row's first: [n, T] -> FP32 [n, T - 1] on the CPU."""
    out = []
    for part in rows.to(model.device).split(batch):
        logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
        out.append(logits.log_softmax(-1).gather(2, part[:, 1:, None])[..., 0].cpu())
    return torch.cat(out)


def greedy(model: GptOssForCausalLM, tokenizer: transformers.PreTrainedTokenizerBase, prompt: str) -> dict:
    """Greedy answer of NEW_TOKENS tokens: ids, text, distinct tokens, margin (least top-1 minus top-2)."""
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids.to(model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = out.sequences[0, ids.shape[1] :].tolist()
    top = torch.stack([step[0].float() for step in out.logits]).topk(2, dim=-1).values
    return {
        "ids": tokens,
        "text": tokenizer.decode(tokens),
        "distinct": len(set(tokens)),
        "margin": round((top[:, 0] - top[:, 1]).min().item(), 3),
    }


def by_source(logp: torch.Tensor, sources: list[str]) -> dict[str, dict]:
    """Mean loss and tokens of each source: logp [n, ROW - 1] of rows cut from the token stream in order."""
    count = logp.shape[0]
    names = [sources[row * ROW + position] for row in range(count) for position in range(1, ROW)]
    out = {}
    for name in sorted(set(names)):
        chosen = torch.tensor([source == name for source in names])
        out[name] = {"loss": round(-logp.flatten()[chosen].mean().item(), 4), "tokens": int(chosen.sum())}
    return out


def by_position(model: GptOssForCausalLM, ids: torch.Tensor) -> dict[str, float]:
    """Mean held-out loss per range of context length, over rows of LONG_ROW tokens."""
    logp = log_probabilities(model, ids.unfold(0, LONG_ROW, LONG_ROW), batch=1)
    means = {f"{low}-{high}": logp[:, max(low - 1, 0) : high - 1].mean().item() for low, high in pairwise(POSITIONS)}
    return {name: round(-mean, 4) for name, mean in means.items()}


def measure(folder: Path, device: str) -> dict:
    """All figures of the model in `folder` as plain data; see the keys below."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids, sources = heldout_tokens(folder, tokenizer)
    rows = ids[: len(ids) // ROW * ROW].view(-1, ROW)
    model = load(folder, torch.bfloat16, device)
    reference = log_probabilities(model, rows, batch=4)
    answers = {prompt: greedy(model, tokenizer, prompt) for prompt in GATE_PROMPTS}
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": COHERENCE}], add_generation_prompt=True, tokenize=False
    )
    figures = {
        "parameters": model.num_parameters(),
        "heldout": {
            "tokens": len(ids),
            "loss": round(-reference.mean().item(), 4),
            "by_source": by_source(reference, sources),
            "by_position": by_position(model, ids),
        },
        "sinks": [[round(s, 3) for s in layer.self_attn.sinks.tolist()] for layer in model.model.layers],
        "greedy": answers,
        "coherence": greedy(model, tokenizer, chat)["text"],
        "changes": {},
        "measured_with": {
            "device": "CPU" if device == "cpu" else torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    exact = load(folder, torch.float32, device)
    figures["greedy_fp32"] = {prompt: greedy(exact, tokenizer, prompt) for prompt in GATE_PROMPTS}
    for change in (*SINK_CHANGES, E4M3):
        print(f"measuring: {change}", file=sys.stderr)
        changed = load(folder, torch.bfloat16, device, change)
        logp = log_probabilities(changed, rows, batch=4)
        difference = (logp - reference).abs()
        texts = {prompt: greedy(changed, tokenizer, prompt) for prompt in GATE_PROMPTS}
        figures["changes"][change] = {
            "mean_abs_delta_logp": round(difference.mean().item(), 4),
            "p99_abs_delta_logp": round(difference.flatten().quantile(0.99).item(), 4),
            "loss": round(-logp.mean().item(), 4),
            "greedy_changed": [prompt for prompt in GATE_PROMPTS if texts[prompt]["ids"] != answers[prompt]["ids"]],
            "greedy": texts,
        }
    return figures


def report(folder: Path, training: dict, device: str) -> None:
    """Measure the model in `folder`, write metrics.json there and render the card."""
    figures = {"training": training, **measure(folder, device)}
    write(folder / "metrics.json", json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    render_card(folder)


def main() -> None:
    """Measure again what is in a folder; stdout gets its held-out part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    training = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["training"]
    report(folder, training, "cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["heldout"]))


if __name__ == "__main__":
    main()
