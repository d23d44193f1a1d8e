"""One question to a service that is verified first; the answer as it comes; what the service signed about it.

python private_client.py https://models.example policy.toml token.txt "Good morning!"
"""

from __future__ import annotations

import sys
from pathlib import Path

import openai

from cloister import PrivateClient
from cloister.errors import CloisterError


def main(url: str, policy: str, token_file: str, question: str) -> int:
    receipts = Path("receipts.jsonl")
    token = Path(token_file).read_text(encoding="utf-8").strip()
    with PrivateClient(url, Path(policy), receipts=receipts) as http:
        try:
            keys = http.attest().keys  # nothing is sent to a service that does not pass
        except CloisterError as refusal:
            print(refusal, file=sys.stderr)
            return 3
        print(f"verified: {keys.model} ({keys.model_digest[:16]})")
        client = openai.OpenAI(base_url="http://private/v1", http_client=http, api_key=token)
        messages = [{"role": "user", "content": question}]
        for event in client.chat.completions.create(model=keys.model, messages=messages, stream=True):
            print(event.choices[0].delta.content or "", end="", flush=True)
    print(f"\nthe receipt is in {receipts}; check it with `cloister receipts {receipts}`")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
