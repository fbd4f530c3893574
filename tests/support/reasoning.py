"""Chat templates of reasoning models in our own words, after those of the families in their names."""

from __future__ import annotations

import transformers as tf

from tests.support.tiny import tiny_tokenizer

_ASKED = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"

# Thoughts stand in answers behind the last question alone, an empty one too; thinking can be turned off.
QWEN3 = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% set ns.thought = '' %}{% set ns.answer = m['content'] %}"
    "{% if '</think>' in m['content'] %}"
    "{% set ns.thought = m['content'].split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set ns.answer = m['content'].split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + ns.thought + '\n</think>\n\n' }}{% endif %}"
    "{{ ns.answer + '<|im_end|>\n' }}"
    "{% else %}" + _ASKED + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# The same without a way to turn thinking off: the generation prompt opens a thought.
THINKING = QWEN3.replace(
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}",
    "{{ '<think>\n' }}",
)
# Thoughts are left out of every answer, also of the last; the generation prompt opens one.
R1 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|im_start|>' + m['content'].split('</think>')[-1].lstrip('\n') + '<|im_end|>' }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}"
    "{% else %}{{ '<s>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|><think>\n' }}{% endif %}"
)
# As R1 was first published: the generation prompt opens none.
R1_FIRST = R1.replace("{{ '<|im_start|><think>\n' }}", "{{ '<|im_start|>' }}")
# An answer begins behind a closing tag; thinking is off unless it is asked for, under another name.
DEEPSEEK_V3_1 = R1.replace("{{ '<|im_start|>' + m", "{{ '<|im_start|></think>' + m").replace(
    "{{ '<|im_start|><think>\n' }}",
    "{{ '<|im_start|>' }}{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}",
)
TEMPLATES = {"qwen3": QWEN3, "thinking": THINKING, "r1": R1, "r1_first": R1_FIRST, "v3.1": DEEPSEEK_V3_1}


def reasoning_tokenizer(family: str) -> tf.PreTrainedTokenizerBase:
    """The byte tokenizer with one of these chat templates."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer
