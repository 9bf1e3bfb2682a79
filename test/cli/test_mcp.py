"""`vljepa mcp` where it cannot serve: one sentence each. What it serves: test/agents."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile

import pytest
from blocked import run_without

pytest.importorskip("vljepa_ros.msg", reason="ROS 2 and the built package are not there")

from graph import domain, wait
from terminals import open_terminal

COMMAND = "import sys; from vljepa_ros.cli import main; sys.argv = ['vljepa', {}]; main()"


def test_without_its_extra() -> None:
    done = run_without(("mcp",), COMMAND.format("'mcp'"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "vljepa mcp needs the package mcp, version 2.3 or later (mcp is blocked): "
        "pip install 'mcp>=2.3'.\n"
    )


def test_doctor_knows_the_extra() -> None:
    from vljepa_ros.cli.checks import NOTE, run_checks

    (check,) = (check for check in run_checks("tabletop") if check.name == "mcp")
    assert check.state != NOTE or check.fix == "only needed by vljepa mcp: pip install mcp"


@pytest.mark.parametrize(
    ("options", "token", "said"),
    [
        (["--http", "--port", "{taken}"], "", "--port {taken} cannot be listened on"),
        (["--http"], "short", "VLJEPA_MCP_TOKEN must be 12 or more letters and digits"),
        (["--namespace", "1st"], "", "--namespace: '1st' is no namespace"),
    ],
)
def test_what_cannot_be_served_is_a_sentence(options: list[str], token: str, said: str) -> None:
    pytest.importorskip("mcp.server.mcpserver", reason="mcp is missing: pip install 'mcp>=2.3'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = [option.format(taken=port) for option in options]
        done = subprocess.run(
            [sys.executable, "-c", "from vljepa_ros.cli import main; main()", "mcp", *given],
            env={**os.environ, "VLJEPA_MCP_TOKEN": token}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(said.format(taken=port)) or said in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_token_is_made_up_or_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from vljepa_ros.cli.live.agents import TOKEN, _token

    monkeypatch.delenv(TOKEN, raising=False)
    assert len({_token() for _ in range(9)}) == 9 and len(_token()) > 20
    monkeypatch.setenv(TOKEN, "the-robot-s-own")
    assert _token() == "the-robot-s-own"


def test_on_a_terminal_it_says_who_is_to_start_it_and_ends_on_ctrl_c() -> None:
    pytest.importorskip("mcp.server.mcpserver", reason="mcp is missing: pip install 'mcp>=2.3'")
    master, slave = open_terminal()
    with tempfile.TemporaryFile() as said:

        def told() -> str:
            return os.pread(said.fileno(), 1 << 16, 0).decode()

        process = subprocess.Popen(
            [sys.executable, "-c", "from vljepa_ros.cli import main; main()", "mcp"],
            env={**os.environ, "ROS_DOMAIN_ID": str(domain())}, stdin=slave,
            stdout=subprocess.PIPE, stderr=said,
        )  # fmt: skip
        try:
            wait(lambda: "see docs/mcp.md" in told(), "its sentence")
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=20)[0] == b""
            assert process.returncode == 0 and "Traceback" not in told()
        finally:
            process.kill()
            process.wait()
            os.close(master)
            os.close(slave)
