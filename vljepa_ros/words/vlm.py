"""A vision-language model behind an OpenAI-compatible server: pictures in, one sentence out.

Invariant: whatever the server sends, what comes back is one sentence or an error of one, in which
the key never stands; and pictures go to the address alone that was given.
"""

from __future__ import annotations

import asyncio
import base64
import html
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from vljepa_ros.errors import VLJepaError
from vljepa_ros.perception.texts import QuestionError, checked_text

KEY = "VLM_API_KEY"  # of the environment
LARGEST = 1 << 20  # bytes of an answer
LONGEST = 300  # characters of a sentence
TOKENS = 64  # that are asked for
SHOWN = 160  # characters of what a server says
HINTS = {
    401: f"put its key into the environment variable {KEY}",
    403: f"put a key that may use it into the environment variable {KEY}",
    404: "see whether 'vlm.url' and 'vlm.model' are right",
}
_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?think(?:ing)?>", re.IGNORECASE)
_SENTENCE = re.compile(r".*?[.!?…。！？]+[\"'”’)*_]*(?=\s|$)", re.DOTALL)
_AROUND = " \t\n\"'“”‘’*_`#>"  # marks of quotations and of Markdown


class VlmError(VLJepaError):
    """The server gave no sentence."""


@dataclass(frozen=True)
class Endpoint:
    """A server and what it is asked: `url` up to /v1, `model`, `prompt`, `timeout` in seconds."""

    url: str
    model: str
    prompt: str
    timeout: float

    @property
    def address(self) -> str:
        """Where the requests go."""
        url = self.url.rstrip("/")
        return url if url.endswith("/chat/completions") else f"{url}/chat/completions"

    def check(self) -> None:
        """VlmError unless it can be asked."""
        wanted = "write it as http://HOST:PORT/v1"
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            raise VlmError(f"Parameter 'vlm.url' is no address; {wanted}.") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise VlmError(f"Parameter 'vlm.url' is no address of a server; {wanted}.")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise VlmError(
                f"Parameter 'vlm.url' holds more than an address; {wanted}, and put a key into "
                f"the environment variable {KEY}."
            )
        if importlib.util.find_spec("aiohttp") is None:
            raise VlmError("Asking a VLM needs the package 'aiohttp': pip install aiohttp.")

    def request(self, pictures: Sequence[bytes]) -> dict[str, Any]:
        """The question with pictures, JPEG, as JSON."""
        images = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
            for data in (base64.b64encode(picture).decode() for picture in pictures)
        ]
        content = [{"type": "text", "text": self.prompt}, *images]
        named = {"model": self.model} if self.model else {}
        return {
            **named, "messages": [{"role": "user", "content": content}],
            "max_tokens": TOKENS, "temperature": 0, "stream": False,
        }  # fmt: skip


async def describe(session: Any, endpoint: Endpoint, pictures: Sequence[bytes]) -> str:
    """What the server says of pictures, JPEG, in one sentence.

    `session`: aiohttp's. Raises VlmError, within the endpoint's timeout.
    """
    import aiohttp

    key = os.environ.get(KEY, "").strip()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with session.post(
            endpoint.address, json=endpoint.request(pictures), headers=headers,
            allow_redirects=False, timeout=aiohttp.ClientTimeout(total=endpoint.timeout),
        ) as response:  # fmt: skip
            status, content = response.status, await _read(response.content)
        if key:  # some servers say it again where it is wrong
            content = content.replace(key.encode(), "…".encode())
        return sentence(*_said(status, content))
    except asyncio.TimeoutError:
        problem = f"did not answer within {endpoint.timeout:g} s (vlm.timeout)"
    except VlmError as error:
        problem = str(error)
    except (aiohttp.ClientError, OSError) as error:
        problem = f"cannot be asked ({type(error).__name__}: {_shown(str(error))})"
    except ValueError:  # whose text may hold the header
        problem = f"cannot be asked: the key in {KEY} is none that a header can carry"
    raise VlmError(f"The VLM at {endpoint.address} {problem}.")


async def _read(stream: Any) -> bytes:
    content = b""
    while piece := await stream.read(1 << 16):
        content += piece
        if len(content) > LARGEST:
            raise VlmError(f"sent more than {LARGEST >> 10} KiB where one sentence was asked for")
    return content


def _said(status: int, content: bytes) -> tuple[str, bool]:
    """The text of an answer, and whether it was cut off. VlmError, without its subject."""
    if 300 <= status < 400:
        raise VlmError(f"sends elsewhere ({status}); put the address itself into 'vlm.url'")
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = content.decode(errors="replace")
    if status != 200:
        hint = f"; {HINTS[status]}" if status in HINTS else ""
        raise VlmError(f"answered {status} ({_shown(_message(answer))}){hint}")
    if not isinstance(answer, dict):
        raise VlmError(f"answered what is no JSON object ({_shown(str(answer))})")
    choices = answer.get("choices")
    if not choices or not isinstance(choices, list) or not isinstance(choices[0], dict):
        raise VlmError(f"answered without a choice ({_shown(_message(answer))})")
    message = choices[0].get("message")
    message = message if isinstance(message, Mapping) else {}
    text = _text(message.get("content"))
    if not text.strip() and (message.get("reasoning") or message.get("reasoning_content")):
        raise VlmError("only thought, and said nothing; choose a model that does not think")
    return text, choices[0].get("finish_reason") == "length"


def _message(answer: Any) -> str:
    """What is wrong, of the shapes of errors that servers have."""
    if not isinstance(answer, dict):
        return str(answer)
    error = answer.get("error", answer)
    if not isinstance(error, dict):
        return str(error)
    return str(error.get("message") or error.get("detail") or error)


def _text(content: Any) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return " ".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def sentence(text: str, cut: bool = False) -> str:
    """The first sentence of what a model said; `cut`: it was cut off before its end.

    Thoughts, quotation marks and Markdown are taken away. VlmError, without its subject, where
    there is no whole sentence of at most 300 characters.
    """
    text = _THOUGHT.sub(" ", text)
    if "<think" in text.lower():
        raise VlmError("only thought, and said nothing; choose a model that does not think")
    text = _TAG.split(text)[-1].strip(_AROUND)  # some templates send the tag's end alone
    found = _SENTENCE.match(text)
    if found is None and cut:
        raise VlmError(f"says no whole sentence within {TOKENS} tokens")
    first = (found[0] if found else text).strip(_AROUND)
    if len(first) > LONGEST:
        raise VlmError(
            f"says a sentence of {len(first):,} characters; {LONGEST} is the most; ask for "
            "a short one by 'vlm.prompt'"
        )
    try:
        return checked_text("answer", "".join(c if c.isprintable() else " " for c in first))
    except QuestionError:
        raise VlmError("says nothing") from None


def _shown(text: str) -> str:
    """As much of what a server says as an error shows, on one line, without tags of HTML."""
    plain = html.unescape(re.sub(r"<[^>]*>", " ", text))
    plain = " ".join("".join(c if c.isprintable() else " " for c in plain).split())
    return plain if len(plain) <= SHOWN else plain[:SHOWN] + "…"
