"""A reward that lives behind a URL: `server(url=http://host:8000)`, or the URL alone.

The protocol is `rewards.remote.protocol`: `scoretune serve-reward` speaks it, and so can any web
server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.rewards.cache import Memory, Pixels, eight_bit, metadata_of
from scoretune.rewards.remote import protocol
from scoretune.rewards.remote.client import Line, check_url


@dataclass(frozen=True)
class Server:
    """Asks the server at `url`; without a gradient.

    `timeout` is in seconds, for a question of at most `batch` images; `retries` come after the
    first attempt; `cache` scores are remembered. Raises UserError for a URL that is none.
    """

    url: str
    timeout: float = 30.0
    retries: int = 3
    batch: int = 16
    cache: int = 4096

    def __post_init__(self) -> None:
        if not (self.timeout > 0 and self.retries >= 0 and self.batch >= 1 and self.cache >= 0):
            raise UserError(
                f"server(timeout={self.timeout:g}, retries={self.retries}, batch={self.batch}, "
                f"cache={self.cache}): timeout must be above 0, batch 1 or more, the others 0 or "
                "more"
            )
        check_url(self.url)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.memory.scores(eight_bit(images), prompts, self._ask, self.batch)

    def fingerprint(self) -> Mapping[str, str]:
        """The URL, and what the server says of itself now."""
        health = self.line.health()
        inner = health.get("fingerprint")
        inner = inner if isinstance(inner, dict) else {}
        told = {f"served {key}": json.dumps(value) for key, value in sorted(inner.items())}
        return {"url": self.url, "served": str(health.get("reward", "unknown")), **told}

    @cached_property
    def memory(self) -> Memory:
        """The scores that were given before."""
        return Memory(self.cache)

    @cached_property
    def line(self) -> Line:
        """The way to the server, with its circuit breaker."""
        return Line(self.url, self.timeout, self.retries)

    def _ask(self, pixels: Pixels, prompts: list[str]) -> list[float]:
        told = tuple(protocol.Told(prompt, metadata_of(prompt)) for prompt in prompts)
        body = self.line.post(protocol.written(protocol.Question(pixels, told)))
        try:
            return protocol.read_answer(body, len(prompts))
        except protocol.Malformed as error:
            self.line.fail(f"breaks the protocol: {error}", "mend the server or the url", error)
