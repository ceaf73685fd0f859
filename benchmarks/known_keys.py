"""`python known_keys.py CONFIG ACCOUNT/PROJECT COUNT FILE`: that many keys of it, one a line.

What `farebox key create` does, without a process for each. Run by the Python of the gateway that
is to know them, so that it is that gateway's own code which makes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from farebox.commands.common import directory, load


def main(config: Path, path: str, count: int, file: Path) -> None:
    account, _, project = path.partition("/")
    with directory(load(config), keys=True) as books:
        keys = [books.create_key(account, project)[1] for _ in range(count)]
    file.write_text("".join(f"{key}\n" for key in keys))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
