// What a model wrote, as HTML that can do nothing: no HTML of its own, no picture from elsewhere, no address but http, https and mailto.
import DOMPurify from "dompurify";
import MarkdownIt from "markdown-it";

const md = new MarkdownIt({ html: false, linkify: true, breaks: true });
const SCHEME = /^(https?:|mailto:)/i;
md.validateLink = (url) => SCHEME.test(url.trim());

// A picture would be fetched from a third party, and tell it who reads this: it is shown as a link.
md.renderer.rules.image = (tokens, index) => {
  const token = tokens[index];
  const url = md.utils.escapeHtml(String(token?.attrGet("src") ?? ""));
  return `<a href="${url}">${md.utils.escapeHtml(token?.content || url)}</a>`;
};

md.renderer.rules.fence = (tokens, index) => {
  const token = tokens[index];
  const name = /^[\w+#.-]{1,30}/.exec(token?.info.trim() ?? "")?.[0] ?? "";
  const kind = name ? ` class="language-${md.utils.escapeHtml(name)}"` : "";
  return `<figure class="code"><figcaption>${md.utils.escapeHtml(name)}</figcaption><pre tabindex="0"><code${kind}>${md.utils.escapeHtml(token?.content ?? "")}</code></pre></figure>`;
};

const purify = DOMPurify(window);
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

const RULES = {
  ALLOWED_TAGS: [
    ..."a b blockquote br code del em figcaption figure h1 h2 h3 h4 h5 h6 hr i li ol p pre s strong table tbody td th thead tr ul".split(
      " ",
    ),
  ],
  ALLOWED_ATTR: ["href", "class", "start", "tabindex", "target", "rel"],
};

export function render(text: string): string {
  return purify.sanitize(md.render(text), RULES);
}

const BLOCK_CHARS = 3_000;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;

/** The text cut between paragraphs, never inside a fence: what is finished need not be rendered again while the rest is written. */
export function blocks(text: string): string[] {
  if (text.length < 2 * BLOCK_CHARS) return [text];
  const found: string[] = [];
  let start = 0;
  let fence = "";
  for (let at = 0; at < text.length; ) {
    const end = text.indexOf("\n", at) + 1 || text.length;
    const line = text.slice(at, end);
    const mark = FENCE.exec(line)?.[1];
    if (mark && !fence) fence = mark;
    else if (mark && fence && mark.startsWith(fence) && line.trim() === mark) fence = "";
    const isBig = end - start >= 10 * BLOCK_CHARS;
    if (!fence && ((line.trim() === "" && end - start >= BLOCK_CHARS) || isBig)) {
      found.push(text.slice(start, end));
      start = end;
    }
    at = end;
  }
  if (start < text.length) found.push(text.slice(start));
  return found;
}
