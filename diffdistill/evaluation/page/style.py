"""The style sheet of a report page, and its one script, which sorts tables and counts the images that loaded.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart, and lighter on a dark page. A shade
mixes a colour with the page.
"""

import base64
import hashlib


def policy(script: str, images: str = "data:") -> str:
    """A content security policy that forbids everything but images, inline styles and one inline script.

    Args:
        script: the text of the script, which the policy names by its hash.
        images: where images may come from.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src {images}; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


STYLE = """
:root { color-scheme: light dark;
  --page: #fdfdfb; --ink: #1c1d1f; --soft: #5f646b; --rule: #e2e2dc; --faint: #efefe9; --note: #fff4d6;
  --shadow: #0003; --link: #0b5f96;
  --g0: #0072b2; --g1: #d55e00; --g2: #009e73; --g3: #b5548b; --g4: #b77b00; --g5: #3f8fc4; }
@media (prefers-color-scheme: dark) { :root {
  --page: #141619; --ink: #e7e6e2; --soft: #a0a5ac; --rule: #30343a; --faint: #212429; --note: #3a2f12;
  --shadow: #000a; --link: #7cc0ee;
  --g0: #56aee6; --g1: #ff8f45; --g2: #35c79c; --g3: #e59ac8; --g4: #eebb4a; --g5: #9ad2f5; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 74rem; padding: 2.5rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 650; letter-spacing: -.01em; margin: 0 0 .6rem;
  text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; font-weight: 650; margin: 3.2rem 0 .8rem; padding-top: .9rem;
  border-top: 1px solid var(--rule); }
p, figcaption, caption, li, dd { max-width: 46rem; overflow-wrap: anywhere; }
p { margin: 0 0 .8rem; }
a { color: var(--link); text-underline-offset: .15em; }
small, .soft, figcaption, caption, dd, nav { color: var(--soft); font-size: .875rem; }
figure { margin: 0 0 1.6rem; }
figcaption, caption { margin-top: .7rem; line-height: 1.5; text-align: left; }
figcaption b, caption b { color: var(--ink); font-weight: 600; }
.headline { font-size: 1.2rem; line-height: 1.45; margin: 1.1rem 0 1.4rem; }
.headline b { font-weight: 650; font-variant-numeric: tabular-nums; white-space: nowrap; }
.incomplete { background: var(--note); padding: .7rem .9rem; border-radius: 6px; }
nav { margin: 1.4rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .9rem; margin: 0 0 1.6rem; font-size: .875rem; }
dt { font-weight: 600; } dd { margin: 0; }

.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 1.8rem 1.4rem; }
.beside { display: grid; grid-template-columns: minmax(0, 26rem) minmax(0, 1fr);
  gap: 0 2.5rem; align-items: center; }
svg.plot { display: block; width: 100%; max-width: 420px; height: auto; overflow: visible; font-family: inherit; }
svg text { fill: var(--ink); font-size: 11px; font-variant-numeric: tabular-nums; }
svg .title { font-size: 13px; font-weight: 600; }
svg .note { font-size: 11px; font-weight: 400; fill: var(--soft); }
svg .tick { fill: var(--soft); } svg .tick.y { text-anchor: end; } svg .tick.x { text-anchor: middle; }
svg .tick.at { fill: var(--ink); paint-order: stroke; stroke: var(--page); stroke-width: 3px; stroke-linejoin: round; }
svg path { fill: none; stroke: var(--soft); stroke-width: 1; }
svg .grid { stroke: var(--rule); stroke-width: .8; }
svg .floor { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 5 3; }
.g0 { --c: var(--g0); } .g1 { --c: var(--g1); } .g2 { --c: var(--g2); }
.g3 { --c: var(--g3); } .g4 { --c: var(--g4); } .g5 { --c: var(--g5); }
.series { --shade: color-mix(in oklab, var(--c) var(--mix), var(--page)); }
.series .line { stroke: var(--shade); stroke-width: 1.5; stroke-linejoin: round; }
.series .err { stroke: var(--shade); stroke-width: 1.1; }
.series .carry { stroke: var(--shade); stroke-width: 1.1; stroke-dasharray: 1 3; stroke-linecap: round; }
.series .leader { stroke: var(--shade); stroke-width: .9; }
.series .mark { fill: var(--shade); stroke: var(--page); stroke-width: 1; }
.series .hit { fill: transparent; }
.series .pt:hover .mark { stroke: var(--ink); stroke-width: 1.6; }
.strong .line { stroke-width: 2.6; } .strong .end { font-weight: 650; }

details { border-top: 1px solid var(--rule); }
details:last-of-type { border-bottom: 1px solid var(--rule); }
summary { padding: .55rem 0; cursor: pointer; font-weight: 600; }
summary .count { font-weight: 400; color: var(--soft); font-size: .875rem; margin-left: .4rem; }
summary:focus-visible, button:focus-visible, .scroll:focus-visible { outline: 2px solid var(--link);
  outline-offset: 2px; }
.scroll { overflow-x: auto; margin-bottom: 1rem; background:
  linear-gradient(to left, var(--page) 40%, transparent) 100% 0 / 40px 100% no-repeat local,
  linear-gradient(to left, var(--shadow), transparent) 100% 0 / 16px 100% no-repeat scroll; }
.sheet { width: max-content; }
.row { display: flex; align-items: center; margin-bottom: 2px; }
.label { flex: none; width: 8.5rem; padding-right: .75rem; position: sticky; left: 0; background: var(--page);
  line-height: 1.3; font-size: .875rem; z-index: 1; overflow-wrap: anywhere; }
.label b { font-weight: 600; display: block; } .label small { display: block; font-size: .78rem; }
.row img, .cells { display: block; flex: none; width: calc(var(--k) * var(--cell)); height: auto; }
.pixels img { image-rendering: pixelated; }
.cells { display: grid; grid-template-columns: repeat(var(--k), var(--cell)); }
.cells span { min-width: 0; padding: 0 1px; text-align: center; font-size: .7rem; color: var(--soft);
  line-height: 1.25;
  overflow-wrap: break-word; hyphens: auto; font-variant-numeric: tabular-nums; }
.heads { align-items: end; } .heads .cells { align-items: end; padding-bottom: .3rem; }
.heads .cells span { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 5; overflow: hidden; }
.pair { align-items: stretch; } .pair .label { align-self: center; }
.which { flex: none; width: 5rem; padding-right: .4rem; display: grid; grid-template-rows: 1fr 1fr;
  align-items: center; }
.which small { font-size: .78rem; }
.under { margin-bottom: 1.1rem; } .under .label { width: 13.5rem; } .under .label small { margin-left: 8.5rem; }

table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; }
th, td { padding: .32rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--faint); }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
thead th { font-weight: 600; border-bottom: 1px solid var(--rule); vertical-align: bottom; }
tfoot td, tfoot th { border-top: 1px solid var(--rule); border-bottom: 0; color: var(--soft); }
tbody th { font-weight: 600; }
th small { display: block; font-weight: 400; line-height: 1.3; } tfoot th { font-weight: 400; }
.all th:first-child, .all td:first-child { position: sticky; left: 0; background: var(--page); }
.pm { color: var(--soft); font-size: .92em; } .best { font-weight: 700; } .best .pm { font-weight: 400; }
tbody tr:hover > * { background: var(--faint); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th[aria-sort] button { text-decoration: underline; text-underline-offset: .25em; text-decoration-thickness: 2px; }
pre { font: .8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--faint);
  padding: .9rem; border-radius: 6px; overflow: auto; max-height: 26rem; user-select: all; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.words code { overflow-wrap: normal; }

@media (max-width: 640px) {
  body { padding: 1.4rem 1rem 3rem; }
  h1 { font-size: 1.4rem; } .headline { font-size: 1.08rem; }
  .row { display: block; margin-bottom: .5rem; }
  .label, .under .label { width: max-content; max-width: 20rem; padding: .1rem .5rem .1rem 0; }
  .label b, .label small { display: inline; margin-right: .5rem; } .under .label small { margin-left: 0; }
  .which { display: none; } .beside { display: block; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; }
}
@media print { nav { display: none; } body { max-width: none; padding: 0; } .scroll { overflow: visible; } }
"""

SCRIPT = """
"use strict";
addEventListener("load", () => {
  const loaded = [...document.images].filter((image) => image.complete && image.naturalWidth > 0);
  document.documentElement.dataset.images = String(loaded.length);
});
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = head.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((cell) => cell.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.v;
      const compare = (a, b) => {
        const x = value(a), y = value(b);
        if (x === "" || y === "") return (x === "") - (y === "");
        const numbers = !isNaN(x) && !isNaN(y);
        return sign * (numbers ? x - y : x.localeCompare(y));
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
"""
