"""A checkpoint as Qwen3-VL is on the hub, but for its size: no coordinate tokens, bfloat16, shards, padded rows."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from learner.model.tiny import TinySizes, build_tiny, tiny_config
from learner.model.tiny_tokenizer import CHAT_TEMPLATE
from shared.families.qwen3_vl import QWEN3_VL

NUM_PADDED = 267
"""Rows of a stock matrix that no token has."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's pre-tokenizer."""
_NOT_SPECIAL = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|repo_name|>", "<think>", "</think>")
_CORPUS = ['{"object_1": {"desc": "black cat", "bbox_2d": ["", "", "", ""]}}, {"object_2": {"desc": "red dog"}}'] * 20


def stock_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of Qwen's kind with Qwen's added tokens; its vocabulary is small and trained here."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(_CORPUS, trainer)
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in QWEN3_VL.special_texts])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in _NOT_SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def write_stock(folder: Path, *, tied: bool = True, seed: int = 0) -> None:
    """Write the checkpoint, with weights large enough that its answers vary."""
    build_tiny(folder)  # of which the processors stay
    for path in (*folder.glob("*token*"), *folder.glob("*.jinja"), *folder.glob("model*")):
        path.unlink()
    tokenizer = stock_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    config = tiny_config(tokenizer, TinySizes())
    config.text_config.vocab_size = len(tokenizer) + NUM_PADDED
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=2 * parameter[0].numel() ** -0.5)
    stops = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, eos_token_id=stops, pad_token_id=stops[1]
    )
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="1MB")
