"""Small tokenizers of the two kinds that models have, and chat templates of several habits."""

import json
from functools import cache
from pathlib import Path

import yaml
from feedback_data import TEMPLATES
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
SPECIAL = [BEGIN, END, "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role != 'user' %}"
    "{{ raise_exception('there is no system role') }}{% endif %}[INST] {{ m.content }} [/INST]"
    "{% endfor %}"
)
SILENT = (
    "{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}\n{% endif %}"
    "{% endfor %}Assistant:"
)


@cache
def corpus() -> list[str]:
    """The words of the shipped prompts, and some titles."""
    lines = [f'{n}. "Title {n}" <Drama, Sci-Fi>' for n in range(200)]
    for path in sorted(TEMPLATES.glob("*.yaml")):
        texts = yaml.safe_load(path.read_text())
        lines += [
            line for text in texts.values() if isinstance(text, str) for line in text.split("\n")
        ]
    return lines + ["Answer: yes", "Answer: no", "yes", "no"] * 20


def byte_level() -> Tokenizer:
    """As Llama 3 and Qwen: bytes, cut before they are merged; <s> begins a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return _begins_with_bos(tokenizer)


def sentencepiece() -> Tokenizer:
    """As Llama 2 and Mistral: a space before every text, nothing cut, unknown letters as bytes."""
    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner = Tokenizer(models.BPE())
    learner.normalizer = spaces
    learner.pre_tokenizer = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    learner.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=700, show_progress=False))
    model = json.loads(learner.to_str())["model"]
    vocab: dict[str, int] = {}
    for token in [*SPECIAL, UNKNOWN, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]:
        vocab.setdefault(token, len(vocab))
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=UNKNOWN, byte_fallback=True))
    tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return _begins_with_bos(tokenizer)


KINDS = {"byte-level": byte_level, "sentencepiece": sentencepiece}


@cache
def _trained(kind: str) -> str:
    return KINDS[kind]().to_str()


def make_tokenizer(kind: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers loads it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(kind)), bos_token=BEGIN, eos_token=END
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def write_tokenizer(folder: Path, kind: str, chat_template: str | None = None) -> str:
    """Writes a model's folder that has a tokenizer, and nothing else; returns its name."""
    make_tokenizer(kind, chat_template).save_pretrained(folder)
    return str(folder)


def _begins_with_bos(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer
