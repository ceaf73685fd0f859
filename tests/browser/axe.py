"""axe-core in a page: what of it some people could not use."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from playwright.sync_api import Page

from tests.fakes.node import node_of_the_tests

HERE = Path(__file__).parent

_RUN = """
async () => {
  const found = await axe.run(document, { resultTypes: ["violations"] });
  return found.violations
    .filter((each) => ["serious", "critical"].includes(each.impact))
    .flatMap((each) => each.nodes.map(
      (node) => `${each.impact} ${each.id}: ${node.target.join(" ")}: ${node.failureSummary}`));
}
"""


def findings(page: Page) -> list[str]:
    """Whatever axe-core calls serious or critical."""
    page.evaluate(_source())
    found = page.evaluate(_RUN)
    assert isinstance(found, list)
    return [str(each) for each in found]


@lru_cache(maxsize=1)
def _source() -> str:
    node_of_the_tests().install(HERE)
    return (HERE / "node_modules" / "axe-core" / "axe.min.js").read_text()
