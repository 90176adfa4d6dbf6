// Colours for code, fetched when the first code is there.
const MOST_CHARS = 50_000;

/** Every finished code block below this element is coloured. */
export async function highlight(root: Element): Promise<void> {
  const found = [...root.querySelectorAll<HTMLElement>("pre code[class^=language-]:not([data-highlighted])")];
  if (found.length === 0) return;
  const { default: hljs } = await import("highlight.js/lib/common");
  for (const code of found) {
    const name = code.className.slice("language-".length);
    if (hljs.getLanguage(name) && (code.textContent?.length ?? 0) < MOST_CHARS && code.isConnected) hljs.highlightElement(code);
  }
}
