"""`dfastllm key`: make an API key, and the entry for the keys file that lets it in."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys


def main() -> int:
    parser = argparse.ArgumentParser(prog="dfastllm key", description=__doc__)
    parser.add_argument("--name", default="", help="who it is for")
    parser.add_argument("--requests", type=int, help="requests it may send in a window; 0: any")
    parser.add_argument("--tokens", type=int, help="tokens it may ask for in a window; 0: any")
    given = parser.parse_args()
    key = f"dfl-{secrets.token_urlsafe(32)}"
    lines = [f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"']
    lines += [f'name = "{_escaped(given.name)}"'] if given.name else []
    for name in ("requests", "tokens"):
        if getattr(given, name) is not None:
            lines.append(f"{name} = {getattr(given, name)}")
    sys.stderr.write(f"The key, which is shown only now: {key}\n")
    sys.stderr.write("Add this to the file of VDIFF_KEYS_FILE:\n")
    sys.stdout.write("\n".join(["[[keys]]", *lines, ""]))
    return 0


def _escaped(text: str) -> str:
    """Return a text as the inside of a TOML string."""
    printable = "".join(char for char in text if char.isprintable())
    return printable.replace("\\", "\\\\").replace('"', '\\"')


if __name__ == "__main__":
    sys.exit(main())
