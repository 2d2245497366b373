"""A server that speaks OpenAI's protocol, in a process of its own: `python openai_like.py PORT`.

The name of the model says how it behaves: `good` answers by the schema that it is sent, `web` with
a web page in place of JSON, `chatter` with words at first, `busy` refuses each request once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

REVIEW = {
    "alignment": 3,
    "aesthetics": 6,
    "issues": [
        {"what": "the hat is green", "where": "top", "category": "attribute", "severity": 1}
    ],
}
PLAN = {"instructions": ["make the hat red"], "edited_caption": "a red hat"}


@contextmanager
def server() -> Iterator[str]:
    """The base URL of one that runs within this context."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/health").read()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def application() -> Any:
    from fastapi import FastAPI, Response

    app = FastAPI()
    seen: dict[str, Any] = {"refused": set(), "now": 0, "most": 0, "requests": []}

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"most": seen["most"], "requests": seen["requests"]}

    @app.post("/v1/chat/completions")
    def complete(body: dict[str, Any]) -> Any:
        seen["now"] += 1
        seen["most"] = max(seen["most"], seen["now"])
        try:
            return answer(body)
        finally:
            seen["now"] -= 1

    def answer(body: dict[str, Any]) -> Any:
        time.sleep(0.02)
        model = body["model"]
        (turn,) = body["messages"]
        picture, text = turn["content"]
        seen["requests"].append(
            {"text": text["text"], "form": body.get("response_format"), "url": picture["image_url"]}
        )
        if model == "busy" and text["text"] not in seen["refused"]:
            seen["refused"].add(text["text"])
            return Response("{}", 503, {"retry-after-ms": "1"}, "application/json")
        if model == "unknown":
            return Response('{"error": {"message": "no such model"}}', 404)
        if model == "web":
            return Response("<html>It works!</html>", media_type="text/html")
        plan = "instructions" in text["text"]
        content = json.dumps(PLAN if plan else REVIEW)
        if model == "chatter" and "could not be read" not in text["text"]:
            content = "Well, let me think about that."
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [choice],
        }

    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(application(), port=int(sys.argv[1]), log_level="error")
