"""A language model of no wits at all: random weights, but a real architecture and tokenizer."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = (" yes", " no", "yes", "no")
"""What is one token each, whatever else is."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|{{ message.role }}|>
{{ message.content }}</s>
{% endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>
{% if thinking is defined and not thinking %}<think></think>
{% endif %}{% endif -%}
"""
CHAT_TEMPLATE_WITHOUT_SYSTEM = (
    "{%- if messages[0].role == 'system' -%}"
    "{{ raise_exception('System role not supported') }}{%- endif -%}" + CHAT_TEMPLATE
)

_TEXT = """\
You are given one viewer's ratings. Which of the numbered films may this viewer like after all?
Answer with the numbers of those films in ascending order, separated by commas, or with none.
Most liked films: "Brass Harbour" (1984; Drama, Romance), "Glass Orchard" (1971; Western)
1. "Silent Meridian" (1996; Action, Adventure, Sci-Fi)  2. "Paper Lantern" (1988; Comedy)
Candidates: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10. Will the viewer enjoy it, yes or no? Answer: none
"""


def save_tiny_model(
    folder: Path,
    *,
    system_role: bool = True,
    heads: int = 2,
    seed: int = 0,
    texts: Sequence[str] = (_TEXT,),
) -> Path:
    """Writes a Llama of at most 0.7 million float32 parameters and its tokenizer (a second).

    Weights are drawn ten times as wide as Llama's are at the start of training: answers then
    depend on the whole prompt, not on its last token alone.

    Args:
        folder: where to.
        system_role: whether the chat template takes a system message, or refuses it. Of its
            arguments it knows `thinking`; where that is false, an empty thought opens the reply.
        heads: of the attention, which share 64 dimensions; vLLM on CPU wants 32 a head at least.
        seed: of the weights.
        texts: what the tokenizer learns its tokens from, 4,096 of them at most.

    Returns:
        The folder.
    """
    tokenizer = _tokenizer(texts)
    tokenizer.chat_template = CHAT_TEMPLATE if system_role else CHAT_TEMPLATE_WITHOUT_SYSTEM
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=8192,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype=torch.float32,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as Llama 3, Qwen and GPT have, that begins every text with <s>."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [*texts, *WORDS * 100],
        trainers.BpeTrainer(
            vocab_size=4096,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    for word in WORDS:
        assert len(tokenizer.encode(word, add_special_tokens=False)) == 1, word
    named = {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


if __name__ == "__main__":
    print(save_tiny_model(Path(sys.argv[1])))
