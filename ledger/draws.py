"""What a node of a fleet asks Valkey, and what it hears: the words of one draw.

All of a draw is for scopes with one *tag*, so that it is one step for the server (`draw.lua`).
What to ask is decided in `fleet`, how it travels in `valkey`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

EXPIRY_SECONDS = 30.0  # of a holder's slots, after its last word
RENEW_SECONDS = 10.0
LIMIT_MAX = 100_000_000  # levels are exact integers up to 2⁵³ in Valkey's scripts
UNITS = 60_000_000  # of a level, per right: then `limit` units flow off in a microsecond


class RightsAsk(msgspec.Struct, frozen=True):
    """`least` rights or nothing, up to `most`; `returned` were drawn and not used (or: a debt)."""

    scope: str
    kind: Literal["rpm", "tpm"]
    limit: int
    least: int
    most: int
    returned: int


class SlotsAsk(msgspec.Struct, frozen=True):
    """At least `least` slots in total or as many as before, up to `most`; `running` are in use."""

    scope: str
    limit: int
    running: int
    least: int
    most: int


class Draw(msgspec.Struct, frozen=True):
    """One step in Valkey, for scopes with one tag. A holder's draws have rising numbers."""

    tag: str
    holder: str
    number: int
    rights: tuple[RightsAsk, ...]
    slots: tuple[SlotsAsk, ...]


class RightsReply(msgspec.Struct, frozen=True):
    """What was granted, and the level afterwards."""

    granted: int
    level: int


class SlotsReply(msgspec.Struct, frozen=True):
    """The slots that this holder has now, and those of all others."""

    held: int
    others: int


class DrawReply(msgspec.Struct, frozen=True):
    """Replies in the order of the asks."""

    rights: tuple[RightsReply, ...]
    slots: tuple[SlotsReply, ...]
