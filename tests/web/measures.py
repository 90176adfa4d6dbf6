"""What can be measured of a page: what axe finds, what was loaded, what the browser keeps."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import CDPSession, Page

AXE = Path(__file__).resolve().parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def serious(page: Page) -> list[str]:
    """What axe finds serious or critical: the rule and where."""
    # Not add_script_tag: the page's Content-Security-Policy lets nothing in, and shall not.
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    found = page.evaluate("rules => axe.run(document, { runOnly: { type: 'tag', values: rules } })", RULES)
    return [
        f"{one['id']}: {node['html'][:160]} {node.get('failureSummary', '')}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def kept(cdp: CDPSession) -> dict[str, float]:
    """Listeners, nodes and bytes of the heap, after the browser has cleaned up."""
    for _ in range(3):
        cdp.send("HeapProfiler.collectGarbage")
    told = {one["name"]: one["value"] for one in cdp.send("Performance.getMetrics")["metrics"]}
    return {name: told[name] for name in ("JSEventListeners", "Nodes", "JSHeapUsedSize")}
