"""Measurements of a page: accessibility violations result by axe, and resources held by the browser."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import CDPSession, Page

AXE = Path(__file__).resolve().parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def serious_violations(page: Page) -> list[str]:
    """Serious and critical accessibility violations: rule and element."""
    # Not add_script_tag: the page's Content-Security-Policy blocks inserted scripts, as it should.
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    result = page.evaluate("rules => axe.run(document, { runOnly: { type: 'tag', values: rules } })", RULES)
    return [
        f"{violation['id']}: {node['html'][:160]} {node.get('failureSummary', '')}"
        for violation in result["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def memory_use(cdp: CDPSession) -> dict[str, float]:
    """Number of listeners and nodes, and bytes of the heap, after garbage collection."""
    for _ in range(3):
        cdp.send("HeapProfiler.collectGarbage")
    metrics = {metric["name"]: metric["value"] for metric in cdp.send("Performance.getMetrics")["metrics"]}
    return {name: metrics[name] for name in ("JSEventListeners", "Nodes", "JSHeapUsedSize")}
