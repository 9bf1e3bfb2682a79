"""An agent that answers what happened while you were away: a language model with the robot's tools.

    vljepa up --video videos/tabletop.mp4 --bundle tabletop --loop --memory   # in one shell
    python examples/away.py --minutes 2 --model qwen3                         # in another

It starts `vljepa mcp`, gives its tools to a language model behind an OpenAI-compatible server (by
default Ollama on this machine), and lets it call them until it answers. A key is read from the
environment variable LLM_API_KEY. It needs the package mcp: pip install mcp.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import urllib.request
from typing import Any

try:
    from mcp import Client, StdioServerParameters
except ImportError:
    sys.exit("away.py needs the package mcp: pip install mcp")

QUESTION = "What happened while I was away?"
ROUNDS = 8  # of the model's calls, until it is to have answered
TIMEOUT = 120.0  # seconds that the model may think
TASK = (
    "You answer for a robot what its cameras saw. Look with the tools before you answer, say only "
    "what they told you, with times, and be brief. The user left {minutes:g} minutes ago."
)


class Model:
    """A language model behind an OpenAI-compatible server."""

    def __init__(self, url: str, name: str) -> None:
        self.address = f"{url.rstrip('/')}/chat/completions"
        self.name = name

    def say(self, messages: list[Any], tools: list[Any]) -> dict[str, Any]:
        """What it says next: words, or calls of tools. OSError: the server does not answer."""
        asked = {"model": self.name, "messages": messages, "tools": tools}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("LLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.address, json.dumps(asked).encode(), headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            said: dict[str, Any] = json.load(response)["choices"][0]["message"]
        return said


async def answer(robot: Client, model: Model, question: str, minutes: float) -> str:
    """Let the model call the robot's tools until it has the answer."""
    tools = [
        {"type": "function", "function": {"name": tool.name, "description": tool.description,
                                          "parameters": tool.input_schema}}
        for tool in (await robot.list_tools()).tools
    ]  # fmt: skip
    task = f"{robot.instructions}\n{TASK.format(minutes=minutes)}"
    messages = [{"role": "system", "content": task}, {"role": "user", "content": question}]
    for _ in range(ROUNDS):
        said = await asyncio.to_thread(model.say, messages, tools)
        messages.append(said)
        calls = said.get("tool_calls") or []
        if not calls:
            return str(said["content"])
        for call in calls:
            name, given = call["function"]["name"], call["function"]["arguments"]
            print(f"{name} {given}", file=sys.stderr)
            result = await robot.call_tool(name, json.loads(given or "{}"))
            told = "\n".join(part.text for part in result.content if part.type == "text")
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": told})
    return "The model called tools on and on, and gave no answer."


async def main() -> int:
    """Ask once; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("question", nargs="?", default=QUESTION, help=f"default: {QUESTION}")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long you were away")
    parser.add_argument("--url", default="http://127.0.0.1:11434/v1", help="the model's server")
    parser.add_argument("--model", default="qwen3", help="the model's name there")
    given = parser.parse_args()
    # All of the environment: the server finds ROS by it.
    server = StdioServerParameters(command="vljepa", args=["mcp"], env=dict(os.environ))
    model = Model(given.url, given.model)
    try:
        async with Client(server) as robot:
            return await tell(robot, model, given.question, given.minutes)
    except Exception as error:  # of whatever kind: what the server said of itself is above
        print(f"vljepa mcp ended ({type(error).__name__}).", file=sys.stderr)
        return 1


async def tell(robot: Client, model: Model, question: str, minutes: float) -> int:
    """Print the answer; the exit code."""
    try:
        print(await answer(robot, model, question, minutes))
    except (OSError, KeyError, TypeError, ValueError) as error:
        print(f"{model.address} gives no answer ({error}): see --url, --model.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
