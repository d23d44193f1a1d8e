"""What an application imports, and when: in the base install, and never once it stands, behind the walls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

TABLE = """
import asyncio, json, sys
from tests.inference.artifacts import make_artifact
from cloister.inference import Predictor
from cloister.inference.application import Request
from cloister.inference.openai import SealingApp, TableApp
from cloister.learning.sections import ModelSection
from cloister.crypto import Identity
import base64
app = SealingApp(TableApp(Predictor.of(make_artifact("boolean", ModelSection(kind="logistic"))), "heart"))
ann = base64.b64encode(b"[" + Identity.generate("ann").public.to_json() + b"]").decode()
before = set(sys.modules)
row = {"age": 20, "pain": "none", "fluid": 1.0}
async def main():
    for rows in ([row], [row | {"age": "20"}], [row] * 400, [row | {"age": "20"}] * 400, [row | {"age": 5}]):
        for headers in ({}, {"cloister-seal-to": ann}):
            reply = await app(Request("POST", "/v1/score", headers, json.dumps({"rows": rows}).encode()))
            assert reply.status in (200, 400)
    await app.aclose()
asyncio.run(main())
print(sorted(set(sys.modules) - before))
"""

CHAT = """
import asyncio, json, sys
from tests.inference.openai.engine import ScriptedEngine, body_of, chat_body, post
from cloister.inference.openai import OpenAIApp
app = OpenAIApp(ScriptedEngine())
before = set(sys.modules)
async def main():
    for more in ({}, {"stream": True, "n": 2}, {"n": 99}):
        await body_of(await app(post("/v1/chat/completions", chat_body(**more))))
    await app.aclose()
asyncio.run(main())
print(sorted(set(sys.modules) - before))
"""

BASE = """
import sys
for name in ("httpx2", "httpcore2", "anyio", "uvicorn", "starlette", "torch", "transformers", "openai"):
    sys.modules[name] = None
import cloister.inference.openai as package
from cloister.errors import InputError
try:
    package.LoopbackApp(lambda: None)
except InputError as error:
    print(error)
"""


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_table_imports_nothing_once_it_stands() -> None:
    assert printed(TABLE) == "[]"


def test_a_chat_imports_nothing_once_it_stands() -> None:
    assert printed(CHAT) == "[]"


def test_the_base_install_has_all_but_the_loopback() -> None:
    assert printed(BASE).endswith("Install cloister[serve].")
