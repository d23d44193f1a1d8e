"""Take what the guest printed on its console apart, and write the quote as evidence of kind "tpm" has it."""

import base64
import json
import re
import sys
from pathlib import Path

PCRS = [*range(10), 11, 12, 13, 14]
out = Path(sys.argv[1])
console = (out / "console.txt").read_text(errors="replace").replace("\r", "")
found = {
    name: base64.b64decode("".join(body.split()))
    for name, body in re.findall(r"BEGIN (\S+)\n(.*?)END \1\n", console, re.DOTALL)
}
missing = {"quote", "signature", "ak.der", "pcrs", "eventlog"} - {name for name in found if found[name]}
if missing:
    sys.exit(f"the guest did not print {', '.join(sorted(missing))}; see {out / 'console.txt'}")
values = [found["pcrs"][start : start + 32] for start in range(0, len(found["pcrs"]), 32)]
document = {
    "quote": base64.b64encode(found["quote"]).decode(),
    "signature": base64.b64encode(found["signature"]).decode(),
    "pcrs": {"sha256": {str(index): value.hex() for index, value in zip(PCRS, values, strict=True)}},
}
(out / "evidence.quote.json").write_text(json.dumps(document, sort_keys=True, separators=(",", ":")))
(out / "ak.der").write_bytes(found["ak.der"])
(out / "eventlog").write_bytes(found["eventlog"])
