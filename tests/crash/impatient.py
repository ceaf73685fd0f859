"""`farebox` as it is, but for the pauses between the restarts of a child that dies on and on.

They are there for what cannot work. Here somebody kills, a thousand times, and wants it back.
"""

from __future__ import annotations

from farebox import children
from farebox.cli import main

children.Backoff.MOST_SECONDS = 0.2

if __name__ == "__main__":
    main()
