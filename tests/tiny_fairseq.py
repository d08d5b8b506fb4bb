"""Tiny translation models as fairseq saves them, and a slow forward pass of theirs, written from its definition."""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WIDTH, HIDDEN, HEADS, LAYERS = 8, 12, 2, 2
# Pieces of subword-nmt: "lo@@" goes on, "we" ends a word. Ids from 4 on.
TOKENS = ("lo@@", "w", "we", "r@@", "er", "n@@", "lower", ",", "&apos;s", "@-@", "wide@@", "st")
CODES = "#version: 0.2\nl o\ne r</w>\nw er</w>\nlo wer</w>\nw e</w>\nw i\nd e\nwi de\ns t</w>\n"
CODES += "@ -\n@- @</w>\n& a\n&a p\n&ap o\n&apo s\n&apos ;\n&apos; s</w>\n"


def settings(**other: Any) -> dict[str, Any]:
    found = {
        "arch": "transformer_iwslt_de_en", "_name": "transformer_iwslt_de_en", "activation_fn": "relu", "dropout": 0.3,
        "share_all_embeddings": True, "share_decoder_input_output_embed": True, "max_source_positions": 64,
        "max_target_positions": 64, "label_smoothing": 0.1, "quant_noise_pq": 0, "adaptive_softmax_cutoff": None,
    }  # fmt: skip
    for side in ("encoder", "decoder"):
        found |= {f"{side}_embed_dim": WIDTH, f"{side}_ffn_embed_dim": HIDDEN, f"{side}_layers": LAYERS}
        found |= {f"{side}_attention_heads": HEADS, f"{side}_normalize_before": False, f"{side}_learned_pos": False}
    return {**found, **other}


def state(made: dict[str, Any], rows: tuple[int, int] = (16, 16), seed: int = 0) -> dict[str, Tensor]:
    """Random weights under fairseq's names."""
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}

    def linear(name: str, out: int, into: int) -> None:
        found[f"{name}.weight"] = torch.randn(out, into, generator=draw) * into**-0.5
        found[f"{name}.bias"] = torch.randn(out, generator=draw) * 0.1

    def norm(name: str) -> None:
        found[f"{name}.weight"] = 1 + 0.2 * torch.randn(WIDTH, generator=draw)
        found[f"{name}.bias"] = 0.2 * torch.randn(WIDTH, generator=draw)

    for side, count in zip(("encoder", "decoder"), rows):
        found[f"{side}.version"] = torch.tensor([3.0])
        found[f"{side}.embed_positions._float_tensor"] = torch.zeros(1)
        table = torch.randn(count, WIDTH, generator=draw) * 0.5
        table[1] = 0
        found[f"{side}.embed_tokens.weight"] = table
        for layer in range(made[f"{side}_layers"]):
            for block in ("self_attn", "encoder_attn")[: 1 if side == "encoder" else 2]:
                for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
                    linear(f"{side}.layers.{layer}.{block}.{part}", WIDTH, WIDTH)
                norm(f"{side}.layers.{layer}.{block}_layer_norm")
            linear(f"{side}.layers.{layer}.fc1", HIDDEN, WIDTH)
            linear(f"{side}.layers.{layer}.fc2", WIDTH, HIDDEN)
            norm(f"{side}.layers.{layer}.final_layer_norm")
        if made[f"{side}_normalize_before"]:
            norm(f"{side}.layer_norm")
    if made["share_all_embeddings"]:
        found["decoder.embed_tokens.weight"] = found["encoder.embed_tokens.weight"]
    shared = made["share_decoder_input_output_embed"] or made["share_all_embeddings"]
    table = found["decoder.embed_tokens.weight"]
    found["decoder.output_projection.weight"] = table if shared else torch.randn(table.shape, generator=draw)
    return found


def checkpoint(folder: Path, rows: tuple[int, int] = (16, 16), form: str = "cfg", **other: Any) -> Path:
    """`folder/model.pt` as a release of fairseq writes it: `cfg` with a Namespace, `hydra` with mappings, or `args`."""
    made = settings(**other)
    whole: dict[str, Any] = {"model": state(made, rows), "extra_state": {"epoch": 3}, "args": None}
    task = {"_name": "translation", "source_lang": "en", "target_lang": "de"}
    if form == "args":
        whole["args"] = argparse.Namespace(**{**made, **task})
    elif form == "cfg":
        whole["cfg"] = {"task": task, "model": argparse.Namespace(**made)}
    else:
        nested: dict[str, Any] = {"encoder": {}, "decoder": {}}
        for key, value in made.items():
            side, _, rest = key.partition("_")
            nested.get(side, nested)[rest if side in nested else key] = value
        whole["cfg"] = {"task": task, "model": nested}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(whole, folder / "model.pt")
    return folder / "model.pt"


def dictionaries(folder: Path, sources: tuple[str, ...] = TOKENS, targets: tuple[str, ...] = TOKENS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for language, tokens in (("en", sources), ("de", targets)):
        (folder / f"dict.{language}.txt").write_text("".join(f"{token} {9 - i}\n" for i, token in enumerate(tokens)))


# ---- The forward pass, a sentence at a time, in float64


def position(place: int, width: int) -> Tensor:
    """Of the token at `place` (from 0): all sines, then all cosines, of fairseq's place + padding index 1 + 1."""
    half = width // 2
    angles = [(place + 2) * math.exp(-i * math.log(10000) / (half - 1)) for i in range(half)]
    return torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)


class Slow:
    """fairseq's Transformer over one sentence, from its state dict."""

    def __init__(self, weights: dict[str, Tensor], made: dict[str, Any]) -> None:
        self.weights = {key: value.double() for key, value in weights.items()}
        self.made = made

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
        return centred * scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def embedded(self, side: str, tokens: list[int]) -> Tensor:
        table = self.weights[f"{side}.embed_tokens.weight"]
        scale = 1.0 if self.made.get("no_scale_embedding") else math.sqrt(WIDTH)
        return torch.stack([scale * table[token] + position(i, WIDTH) for i, token in enumerate(tokens)])

    def attention(self, name: str, x: Tensor, memory: Tensor, causal: bool) -> Tensor:
        q, k, v = (self.linear(f"{name}.{p}_proj", m) for p, m in (("q", x), ("k", memory), ("v", memory)))
        heads, size = [], WIDTH // HEADS
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(-1) @ v[:, part])
        return self.linear(f"{name}.out_proj", torch.cat(heads, -1))

    def block(self, norm: str, x: Tensor, before: bool, f: Any) -> Tensor:
        return x + f(self.norm(norm, x)) if before else self.norm(norm, x + f(x))

    def side(self, side: str, x: Tensor, memory: Tensor | None) -> Tensor:
        before = self.made[f"{side}_normalize_before"]
        activation = {"relu": torch.relu, "gelu": torch.nn.functional.gelu}[self.made["activation_fn"]]
        for layer in range(self.made[f"{side}_layers"]):
            name = f"{side}.layers.{layer}"
            attend = lambda y, name=name: self.attention(f"{name}.self_attn", y, y, side == "decoder")  # noqa: E731
            x = self.block(f"{name}.self_attn_layer_norm", x, before, attend)
            if memory is not None:
                look = lambda y, name=name: self.attention(f"{name}.encoder_attn", y, memory, False)  # noqa: E731
                x = self.block(f"{name}.encoder_attn_layer_norm", x, before, look)
            feed = lambda y, name=name: self.linear(f"{name}.fc2", activation(self.linear(f"{name}.fc1", y)))  # noqa: E731
            x = self.block(f"{name}.final_layer_norm", x, before, feed)
        return self.norm(f"{side}.layer_norm", x) if before else x

    def logits(self, source: list[int], target: list[int]) -> Tensor:
        memory = self.side("encoder", self.embedded("encoder", source), None)
        states = self.side("decoder", self.embedded("decoder", target), memory)
        return states @ self.weights["decoder.output_projection.weight"].T
