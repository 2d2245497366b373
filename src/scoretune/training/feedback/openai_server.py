"""Critic and writer behind a server that speaks OpenAI's protocol: vLLM, SGLang, Ollama and others.

Answers are asked for by a JSON schema, many at once; what a server does not answer is asked again
by the client, which waits longer each time.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from pydantic import BaseModel

from scoretune.core.errors import UserError, first_line
from scoretune.data.store.picture_folder import as_png
from scoretune.training.feedback import wording
from scoretune.training.feedback.answers import critiques_by, plans_by
from scoretune.training.feedback.records import Answer, Critique, EditPlan, Shown


@dataclass(frozen=True)
class Server:
    """A model on a server.

    base_url: such as http://localhost:8000/v1; model: its name there; concurrent: requests at once;
    retries: of a request that fails; timeout: seconds of one; structured: whether the server is
    given the schema of its answers; tokens: of an answer, at most. The key is the environment's
    OPENAI_API_KEY.
    """

    base_url: str
    model: str
    concurrent: int = 8
    retries: int = 4
    timeout: float = 300.0
    structured: bool = True
    tokens: int = 1024

    @cached_property
    def client(self) -> Any:
        """The client. Raises UserError where it is not installed."""
        try:
            import openai
        except ModuleNotFoundError as error:
            raise UserError(
                "critic=openai(…) needs openai: pip install 'scoretune[critic]'"
            ) from error
        return openai.OpenAI(
            base_url=self.base_url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=self.retries,
            timeout=self.timeout,
        )

    def ask(
        self, kind: type[BaseModel], pictures: Sequence[Shown], questions: Sequence[str]
    ) -> list[str]:
        """The answer to a question about each picture. Raises UserError if the server does not."""
        with ThreadPoolExecutor(self.concurrent) as pool:
            pending = [
                pool.submit(self._one, kind, shown, question)
                for shown, question in zip(pictures, questions, strict=True)
            ]
            try:
                return [future.result() for future in pending]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _one(self, kind: type[BaseModel], shown: Shown, question: str) -> str:
        import openai

        picture = base64.b64encode(as_png(shown.pixels)).decode()
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            {"type": "text", "text": question},
        ]
        form = {"name": kind.__name__, "strict": True, "schema": wording.strict_schema(kind)}
        extra = {"response_format": {"type": "json_schema", "json_schema": form}}
        try:
            reply = self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                temperature=0,
                max_tokens=self.tokens,
                **(extra if self.structured else {}),
            )
        except openai.APIStatusError as error:
            raise self._error(f"answers {error.status_code}", error) from error
        except openai.APIConnectionError as error:
            raise self._error("does not answer", error) from error
        except (openai.OpenAIError, ValueError) as error:  # no JSON where the protocol has some
            return f"{type(error).__name__}: {error}"
        return _text(reply)

    def _error(self, what: str, error: Exception) -> UserError:
        return UserError(
            f"the server {self.base_url!r} {what} ({first_line(error)[:120]}): check base_url=, "
            "model= and that it runs; what was done is kept, the same command goes on"
        )


def _text(reply: Any) -> str:
    """What a reply says; of what is no reply (a web page) all of it."""
    choices = getattr(reply, "choices", None)
    if not choices:
        return str(reply)
    return getattr(choices[0].message, "content", None) or ""


@dataclass(frozen=True)
class ServerCritic(Server):
    """Asks a server for a critique in JSON."""

    def __call__(self, pictures: Sequence[Shown]) -> list[Answer[Critique]]:
        return critiques_by(partial(self.ask, Critique), pictures)


@dataclass(frozen=True)
class ServerWriter(Server):
    """Asks a server for instructions in JSON."""

    most: int = 3

    def __call__(
        self, pictures: Sequence[Shown], critiques: Sequence[Critique]
    ) -> list[Answer[EditPlan]]:
        return plans_by(partial(self.ask, EditPlan), pictures, critiques, self.most)
