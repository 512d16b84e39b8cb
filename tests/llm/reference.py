"""What the engine has to answer, by transformers, one prompt at a time and without any cache."""

from itertools import chain, combinations
from pathlib import Path

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from refine.feedback.llm.engine import Request


class Reference:
    """A model as transformers runs it.

    Args:
        folder: of the model.
        chat: whether prompts are put to it as messages.
        arguments: of the chat template.
    """

    def __init__(self, folder: Path, *, chat: bool = False, **arguments: bool) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        torch.set_num_threads(1)  # more only wait for each other on a model so small
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.chat = chat
        self.arguments = arguments
        tokens = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        special = self.tokenizer.all_special_tokens
        self.pieces = [b"" if token in special else in_bytes(token) for token in tokens]

    def token_ids(self, request: Request) -> list[int]:
        """The prompt. The tokenizer of the tiny model cuts before a paragraph in any case."""
        context = f"{request.context}\n\n{request.question}"
        if not self.chat:
            return self.tokenizer(f"{request.instructions}\n\n{context}")["input_ids"]
        try:
            text = self.render(
                {"role": "system", "content": request.instructions},
                {"role": "user", "content": context},
            )
        except TemplateError:  # it takes no system message
            text = self.render({"role": "user", "content": f"{request.instructions}\n\n{context}"})
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def render(self, *messages: dict[str, str]) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True, **self.arguments
        )

    @torch.inference_mode()
    def log_probabilities(self, token_ids: list[int]) -> torch.Tensor:
        """[vocabulary]: of the token that comes next."""
        return self.model(torch.tensor([token_ids])).logits[0, -1].log_softmax(-1)

    def log_odds(self, request: Request) -> float:
        assert request.words
        space = b"" if self.chat else b" "
        yes, no = (self.pieces.index(space + word.encode()) for word in request.words)
        scores = self.log_probabilities(self.token_ids(request))
        return float(scores[yes] - scores[no])

    def answer(self, request: Request) -> tuple[str, int]:
        """The most likely token at each step of those that lead to an answer in form.

        Returns:
            The answer up to a line break, and how many tokens the model was asked for.
        """
        assert request.choices
        answers = answers_in_form(request.choices)
        end = self.tokenizer.eos_token_id
        ids, said = self.token_ids(request), b""
        while True:
            scores = self.log_probabilities(ids)
            possible = [
                token
                for token, piece in enumerate(self.pieces)
                if piece and any(answer.startswith(said + piece) for answer in answers)
            ]
            if said in answers:
                possible.append(end)
            chosen = max(possible, key=scores.__getitem__)
            ids, said = [*ids, chosen], said + self.pieces[chosen]
            if chosen == end or b"\n" in said:
                return said.partition(b"\n")[0].decode(), len(ids) - len(self.token_ids(request))


def in_bytes(token: str) -> bytes:
    """The bytes behind a token of a byte-level tokenizer, which writes each as a visible letter."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    letters |= {chr(256 + place): byte for place, byte in enumerate(others)}
    return bytes(letters[letter] for letter in token)


def answers_in_form(choices: tuple[str, ...]) -> set[bytes]:
    """Every text that is a list of choices in order, or none; a space before, line breaks after."""
    lists = chain.from_iterable(combinations(choices, n) for n in range(1, len(choices) + 1))
    bare = ["none", *(", ".join(chosen) for chosen in lists)]
    ends = ("", "\n", "\n\n")
    return {f"{space}{text}{end}".encode() for text in bare for space in ("", " ") for end in ends}
