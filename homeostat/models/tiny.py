"""A tiny random model with a byte tokenizer, built in code: tests need no download."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from homeostat.config.model import TinyModelConfig
from homeostat.models.load import BaseModel, finish

SPECIAL = ("<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load_tiny(config: TinyModelConfig, device: torch.device, dtype: torch.dtype) -> BaseModel:
    """A Llama of ``num_layers`` blocks with random weights that follow from ``init_seed``."""
    tokenizer = byte_tokenizer()
    architecture = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=2 * config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        # Wide enough that an adapter can make any token likely: the embeddings stay frozen.
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.init_seed)
        model = LlamaForCausalLM(architecture)
    return finish(model.to(dtype), tokenizer, config, device)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, plus the two markers of the chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[1],
        additional_special_tokens=[SPECIAL[0]],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
