"""How a prompt is put to an OpenAI-compatible server, and how what it answers is read.

All such servers take a prompt and give a text. They differ in what else they can be asked for: a
form that the answer must have, and the probabilities of words. No network here.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from refine.feedback.llm.engine import EngineError, Reply, Request
from refine.feedback.parsing import answer_room, json_schema, pattern
from refine.feedback.tokens import BREAK, CHAT, PromptEncoder, PromptTokenizer, TokenizerError

_NO_PROBABILITY = -9999.0
"""What vLLM's server writes for the logarithm of 0, which JSON has no number for."""


class AnswerError(ValueError):
    """What came back is not the JSON that the API promises."""


class Dialect:
    """Writes requests to one server, and reads its answers, as a judge's settings say.

    The server counts as one of three kinds. ``vllm`` holds answers to a pattern, and says how
    probable the two tokens are that it is asked about. ``openai`` holds answers of chat models to a
    JSON schema, and lists the most probable tokens. ``plain`` does neither.

    Attributes:
        chats: whether messages are sent, or a text to be completed.
        path: where to, below the judge's ``url``.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """Loads the tokenizer, where the dialect needs it.

        Args:
            settings: of the judge: ``server``, ``form``, ``strategy``, ``model``, ``tokenizer``,
                ``chat`` and ``request``.

        Raises:
            EngineError: the server cannot be asked what the judge's strategy needs.
        """
        self._settings = settings
        self._server: str = settings["server"]
        self.chats = settings["form"] == CHAT
        self._encoder: PromptEncoder | None = None
        self._word_names: list[str] = []
        self.path = "/chat/completions" if self.chats else "/completions"
        scores = settings["strategy"] == "score"
        if scores and self._server == "plain":
            raise EngineError(
                "`server: plain` is asked for no probabilities, which `strategy: score` needs: set "
                "the judge's `server` to `vllm` or `openai`, or its `strategy` to `select`"
            )
        if scores and self._server == "vllm" and settings["tokenizer"] is None:
            raise EngineError(
                "`server: vllm` is asked how probable two tokens are by their numbers: name the "
                "model whose tokenizer knows them in the judge's `tokenizer`"
            )
        if self._server == "vllm" and settings["tokenizer"] and (scores or not self.chats):
            self._encoder = _encoder(settings)

    def body(self, request: Request) -> dict[str, Any]:
        """The JSON to send."""
        body = {"model": self._settings["model"], "temperature": 0, **self._prompt(request)}
        if self._server == "vllm":
            # A server takes what it is not told from the model's generation_config.json; where
            # that has a penalty, even the most probable token is another.
            body["repetition_penalty"] = 1.0
        if self.chats and self._settings["chat"]:
            body["chat_template_kwargs"] = self._settings["chat"]
        if request.words is None:
            body |= self._choose(request.choices or ())
        else:
            body |= self._weigh(request, request.words)
        body |= self._settings["request"]
        return {name: value for name, value in body.items() if value is not None}

    def reply(self, request: Request, text: str) -> Reply:
        """Reads the body of a successful response.

        Raises:
            AnswerError: it is not what the API promises.
            EngineError: the server leaves out the probabilities that it was asked for.
        """
        try:
            answer = json.loads(text, parse_constant=_refuse)
            choice = answer["choices"][0]
            said = self._text(choice)
            listed = self._listed(choice) if request.words else {}
            usage = answer.get("usage") or {}
            details = usage.get("prompt_tokens_details") or {}
            reply = Reply(
                request.key,
                said,
                truncated=request.words is None and choice.get("finish_reason") == "length",
                prompt_tokens=_count(usage, "prompt_tokens"),
                cached_tokens=_count(details, "cached_tokens"),
                answer_tokens=_count(usage, "completion_tokens"),
            )
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise AnswerError(f"not an answer of the API: {text}") from error
        if request.words is None:
            return reply
        if said and not listed:
            raise EngineError(
                "the server answers without the probabilities that `strategy: score` needs: see "
                "whether the judge's `server` names its kind, turn them on there, or set "
                "`strategy: select`"
            )
        return replace(reply, log_odds=self._log_odds(request.words, listed))

    def _prompt(self, request: Request) -> dict[str, Any]:
        if self.chats:
            return {
                "messages": [
                    {"role": "system", "content": request.instructions},
                    {"role": "user", "content": f"{request.context}{BREAK}{request.question}"},
                ]
            }
        texts = (request.instructions, request.context, request.question)
        return {"prompt": self._encoder.prompt_ids(*texts) if self._encoder else BREAK.join(texts)}

    def _choose(self, choices: Sequence[str]) -> dict[str, Any]:
        """The part of a body that asks for some of the choices."""
        if self._server == "vllm":
            return {
                "structured_outputs": {"regex": pattern(choices)},
                "stop": ["\n"],  # which the pattern lets a list end with
                "max_tokens": answer_room(choices),
            }
        if self._server == "openai" and self.chats:
            form = {"name": "liked", "strict": True, "schema": json_schema(choices)}
            # A token holds a byte or more, and servers may break and indent lines.
            room = len(json.dumps({"liked": list(choices)}, indent=4).encode()) + 1
            return {
                "response_format": {"type": "json_schema", "json_schema": form},
                "max_completion_tokens": room,
            }
        return {"max_tokens": answer_room(choices)}

    def _weigh(self, request: Request, words: tuple[str, str]) -> dict[str, Any]:
        """The part of a body that asks how probable two words are."""
        length = (
            "max_completion_tokens" if self._server == "openai" and self.chats else "max_tokens"
        )
        body: dict[str, Any] = {length: 1}
        # The most that OpenAI lists: 20 tokens of a chat model, 5 of another.
        body |= {"logprobs": True, "top_logprobs": 20} if self.chats else {"logprobs": 5}
        if self._encoder:
            texts = (request.instructions, request.context, request.question)
            try:
                ids = self._encoder.word_ids(*texts, words)
            except TokenizerError as error:
                raise EngineError(str(error)) from error
            self._word_names = [f"token_id:{number}" for number in ids]
            body["logprob_token_ids"] = ids
            body["return_tokens_as_token_ids"] = True
        return body

    def _log_odds(self, words: tuple[str, str], listed: dict[str, float]) -> float | None:
        """The log-odds of yes against no, None where neither is listed.

        Where a server lists the most probable tokens, a word is every token that reads so, whatever
        its case and the spaces around it. A word that is not among them counts as just as probable
        as the last that is: it is no more.
        """
        if self._word_names:
            yes, no = (listed[name] for name in self._word_names)
            return None if _NO_PROBABILITY in (yes, no) else yes - no
        alike = [
            [weight for token, weight in listed.items() if token.strip().casefold() == word]
            for word in map(str.casefold, words)
        ]
        if not any(alike):
            return None
        least = min(listed.values())
        yes, no = (_log_sum(weights) if weights else least for weights in alike)
        return yes - no

    def _text(self, choice: Any) -> str:
        if not self.chats:
            text = choice["text"]
        else:
            message = choice["message"]
            text = message.get("content")
            if text is None and message["role"]:  # it refuses, or has spent its tokens on thoughts
                text = message.get("refusal") or ""
        if not isinstance(text, str):
            raise TypeError
        return text

    def _listed(self, choice: Any) -> dict[str, float]:
        """Tokens and their log-probabilities at the place of the answer's first token.

        Where tokens are asked for by number, none are listed unless those are.
        """
        logprobs = choice.get("logprobs") or {}
        if self.chats:
            tokens = (logprobs.get("content") or [{}])[0].get("top_logprobs") or []
            listed = {token["token"]: float(token["logprob"]) for token in tokens}
        else:
            first = (logprobs.get("top_logprobs") or [None])[0] or {}
            listed = {token: float(weight) for token, weight in first.items()}
        return listed if listed.keys() >= set(self._word_names) else {}


def _encoder(settings: dict[str, Any]) -> PromptEncoder:
    """Writes prompts as token ids: as they were counted, and as the vLLM judge sends them."""
    try:
        tokenizer = PromptTokenizer.load(settings["tokenizer"], None)
    except TokenizerError as error:
        raise EngineError(str(error)) from error
    return PromptEncoder(tokenizer, settings["form"], settings["chat"])


def _count(usage: dict[str, Any], name: str) -> int | None:
    count = usage.get(name)
    return count if isinstance(count, int) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _log_sum(weights: Sequence[float]) -> float:
    """The logarithm of the sum of probabilities, all given as logarithms."""
    greatest = max(weights)
    return greatest + math.log(sum(math.exp(weight - greatest) for weight in weights))
