"""The test Hub of these tests, and processes in which the real clients talk to it."""

import os
import subprocess
import sys

import pytest
from hub_server import HubServer


@pytest.fixture(scope="session")
def hub_server():
    """One Hub for the whole test process: tests keep apart by using users of different names."""
    with HubServer() as server:
        server.token("nobody")  # from the first token on, unknown ones are refused
        yield server


@pytest.fixture(autouse=True)
def no_faults_left_behind(hub_server):
    hub_server.reset()
    yield
    hub_server.reset()


@pytest.fixture
def client(hub_server, tmp_path):
    """
    A function that runs Python code (or a command, as a list) in a process of its own against the Hub.

    Its arguments: the code; what the code finds in `sys.argv[1:]`; `token` to be logged in with; `check=False` where the
    process may fail; further environment variables by name. The Hub's cache starts empty in each test and is kept between
    the calls of one. It returns the `subprocess.CompletedProcess`, with its output as text.
    """

    def run(code: str | list[str], *arguments, token: str = "", check: bool = True, timeout: int = 180, **environment):
        command = [sys.executable, "-c", code] if isinstance(code, str) else code
        result = subprocess.run(
            [*command, *map(str, arguments)],
            env=os.environ | hub_server.environment(tmp_path / "hf_home", token) | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or result.returncode == 0, result.stdout + result.stderr
        return result

    return run
