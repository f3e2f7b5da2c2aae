"""Write a random Llama and its tokenizer, so that a real vLLM can serve without a download.

Run it with the interpreter that has vLLM (it needs ``transformers`` and ``tokenizers``, nothing of
this package)::

    python tests/parts/tiny_model.py build/real/model --hidden 512 --layers 8

Only a configuration and a tokenizer are written; ``--load-format dummy`` fills the weights. The
size decides the step time: a wider model makes decode steps long enough for queues to look like
those of a GPU.
"""

import argparse
import json
from pathlib import Path

VOCABULARY = 512
"""Tokens in the vocabulary: the 256 bytes, the end mark and some merges."""

SENTENCE = "the quick brown fox jumps over the lazy dog while the engine counts every token"
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
END = "<|end|>"


def write_tokenizer(out: Path) -> int:
    """Train a byte-level BPE on one sentence, save it, and return the end token's id."""
    from tokenizers import (  # type: ignore[import-not-found]  # only beside vLLM
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCE], trainer)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": END,
                "chat_template": CHAT_TEMPLATE,
            },
            indent=2,
        ),
        encoding="utf-8",
    )
    return int(tokenizer.token_to_id(END))


def write_model(
    out: Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    max_positions: int = 8192,
) -> None:
    """Write configuration and tokenizer below `out`, which is created.

    `hidden`, `head_dim` and the counts are Llama's; `max_positions` bounds ``--max-model-len``.
    """
    from transformers import LlamaConfig  # type: ignore[import-not-found]  # only beside vLLM

    out.mkdir(parents=True, exist_ok=True)
    end = write_tokenizer(out)
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=VOCABULARY,
        max_position_embeddings=max_positions,
        dtype="bfloat16",
        bos_token_id=end,
        eos_token_id=end,
    )
    config.save_pretrained(out)


def write_adapters(
    model: Path, count: int, *, hidden: int, layers: int, heads: int, head_dim: int, rank: int = 8
) -> None:
    """Write random LoRA adapters ``a1``, ``a2``, … of the query projections below `model`."""
    import torch  # type: ignore[import-not-found]  # only beside vLLM
    from safetensors.torch import save_file  # type: ignore[import-not-found]  # only beside vLLM

    for number in range(1, count + 1):
        out = model / "adapters" / f"a{number}"
        out.mkdir(parents=True, exist_ok=True)
        weights = {}
        for layer in range(layers):
            head = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            weights[f"{head}.lora_A.weight"] = torch.randn(rank, hidden, dtype=torch.bfloat16)
            weights[f"{head}.lora_B.weight"] = torch.randn(
                heads * head_dim, rank, dtype=torch.bfloat16
            )
        save_file(weights, str(out / "adapter_model.safetensors"))
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": "tiny",
            "r": rank,
            "lora_alpha": rank,
            "target_modules": ["q_proj"],
            "bias": "none",
            "task_type": "CAUSAL_LM",
        }
        (out / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def main() -> None:
    """Read the command line and write the model."""
    parser = argparse.ArgumentParser(description="Write a random Llama for a real vLLM.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--max-positions", type=int, default=8192)
    parser.add_argument("--adapters", type=int, default=0, help="random LoRA adapters to add")
    options = parser.parse_args()
    write_model(
        options.out,
        hidden=options.hidden,
        layers=options.layers,
        heads=options.heads,
        kv_heads=options.kv_heads,
        head_dim=options.head_dim,
        max_positions=options.max_positions,
    )
    if options.adapters:
        write_adapters(
            options.out,
            options.adapters,
            hidden=options.hidden,
            layers=options.layers,
            heads=options.heads,
            head_dim=options.head_dim,
        )


if __name__ == "__main__":
    main()
