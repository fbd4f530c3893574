"""Chat templates that write tools and calls, in our own words, after those of the families in their names."""

from __future__ import annotations

import functools

import torch
import transformers as tf

from softprompt.models.frozen_lm import FrozenLM
from tests.support.tiny import CONFIGS, tiny_tokenizer

_TURNS = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
_END = "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_CALL = "{'name': c.function.name, 'arguments': c.function.arguments}"
_TOOLS = "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
_EACH = "{% for c in m.tool_calls or [] %}"

QWEN = f"{_TOOLS}{_TURNS}{_EACH}{{{{ '\n<tool_call>\n' + ({_CALL} | tojson) + '\n</tool_call>' }}}}{{% endfor %}}{_END}"
LLAMA3 = (
    f"{_TOOLS}{_TURNS}{{% if m.tool_calls and m.tool_calls | length > 1 %}}{{{{ raise_exception('one call') }}}}"
    f"{{% endif %}}{_EACH}{{{{ {_CALL.replace('arguments', 'parameters', 1)} | tojson }}}}{{% endfor %}}{_END}"
)
MISTRAL = (
    f"{_TOOLS}{_TURNS}{{% if m.tool_calls %}}{{{{ '[TOOL_CALLS][' }}}}{_EACH}{{{{ {_CALL} | tojson }}}}"
    f"{{% if not loop.last %}}{{{{ ', ' }}}}{{% endif %}}{{% endfor %}}{{{{ ']' }}}}{{% endif %}}{_END}"
)
XML = (
    f"{_TOOLS}{_TURNS}{_EACH}{{{{ '<call=' + c.function.name + '>' + (c.function.arguments | tojson) }}}}"
    f"{{% endfor %}}{_END}"
)
TEMPLATES = {"qwen": QWEN, "llama3": LLAMA3, "mistral": MISTRAL, "xml": XML}


def calling_tokenizer(family: str) -> tf.PreTrainedTokenizerBase:
    """The byte tokenizer with one of these chat templates; Mistral's marker is a control token."""
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.chat_template = TEMPLATES[family]
    if family == "mistral":
        tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]"]})
    return tokenizer


@functools.cache
def _roomy_model() -> tf.PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIGS["llama"]()
    config.max_position_embeddings = 4096
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3)
    return model


def roomy_lm(tokenizer: tf.PreTrainedTokenizerBase) -> FrozenLM:
    """A random tiny model with room for definitions of tools in bytes."""
    return FrozenLM(_roomy_model(), tokenizer, "tiny-llama")
