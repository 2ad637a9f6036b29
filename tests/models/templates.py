"""Chat templates like those that models come with, for the byte tokenizer."""

from __future__ import annotations

from typing import Any

from homeostat.models.tiny import CHAT_TEMPLATE, byte_tokenizer

PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

# Like Gemma 2: no system turn, strictly alternating roles, its own name for the assistant.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "<|im_start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
# Like SmolLM 2: a system turn of its own where none is given.
OWN_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n"
    "{% endif %}" + CHAT_TEMPLATE
)
DROPS_SYSTEM = CHAT_TEMPLATE.replace(
    "for message in messages", "for message in messages if message['role'] != 'system'"
)
# Like Mistral 7B: the system text moves along to the last user turn.
MOVES_SYSTEM = (
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last %}{{ system }}{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}" + PROMPT
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}" + PROMPT
)
# Like Qwen 3: the prompt may close a thought at once, and older replies lose their thoughts.
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in text and loop.index0 < ns.last %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Like Llama 3.2: the date is asked for unless it is given.
DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|im_start|>system\nToday: {{ date_string }}<|im_end|>\n" + CHAT_TEMPLATE
)
# Like Granite: the clock is asked within a macro.
CLOCKED = (
    "  {% macro today(order) %}{{ strftime_now(order) }}{% endmacro %}"
    "<|im_start|>system\nToday: {{ today('%B %-d, %Y, %A %H:%M:%S') }}<|im_end|>\n" + CHAT_TEMPLATE
)
TEMPLATES = {
    "plain": CHAT_TEMPLATE,
    "no system": NO_SYSTEM,
    "own system": OWN_SYSTEM,
    "drops system": DROPS_SYSTEM,
    "moves system": MOVES_SYSTEM,
    "parts": PARTS,
    "thinking": THINKING,
    "dated": DATED,
    "clocked": CLOCKED,
}


def tokenizer_with(template: str) -> Any:
    """The byte tokenizer with another chat template."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer
