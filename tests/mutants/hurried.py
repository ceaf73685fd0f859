"""For pytest in a mutant: a failing example is enough, nobody needs the smallest one."""

from __future__ import annotations

from hypothesis import Phase, settings

settings.register_profile(
    "hurried", phases=(Phase.explicit, Phase.generate), database=None, print_blob=False
)
settings.load_profile("hurried")
