"""Two crops in one place with a divider between them, and the choice of the second one.

The divider is an input of type range over the pictures: it can be dragged, and moved with the arrow keys. Without
scripts it stays in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SLIDER_STYLE = """
.photo { margin: 0 0 2.6rem; } .photo h3 { margin: 1.8rem 0 .6rem; font-size: 1.02rem; overflow-wrap: anywhere; }
.sliders { display: flex; flex-wrap: wrap; gap: 1.2rem 2rem; }
.compare { margin: 0; max-width: 100%; width: 384px; }
.compare .what { font-weight: 600; font-size: .875rem; margin: 0 0 .3rem; }
.compare label { font-size: .875rem; display: block; margin-bottom: .4rem; }
.compare select { font: inherit; max-width: 100%; display: block; width: 100%; }
.pair { position: relative; width: 100%; }
.pair img, .strip img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.pair .first { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--at)) 0 0); }
.pair::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--at); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 0 1px #000a; pointer-events: none; }
.pair input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
.pair:focus-within { outline: 3px solid var(--link); outline-offset: 2px; }
.photo .scroll { margin-top: .9rem; }
.tag { position: absolute; bottom: .4rem; padding: 0 .4rem; font-size: .75rem; background: #000a; color: #fff;
  pointer-events: none; border-radius: 3px; } .tag.left { left: .4rem; } .tag.right { right: .4rem; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(192px, 1fr)); gap: .8rem; margin: .9rem 0; }
.strip figure { margin: 0; } .strip figcaption { margin-top: .25rem; font-size: .8rem; }
td small { display: block; color: var(--soft); }
"""

SLIDER_SCRIPT = """
for (const box of document.querySelectorAll(".compare")) {
  const pair = box.querySelector(".pair"), range = box.querySelector("input"), select = box.querySelector("select");
  const [other, ours] = pair.querySelectorAll("img"), tag = pair.querySelector(".tag.right");
  const move = () => {
    pair.style.setProperty("--at", range.value + "%");
    range.setAttribute("aria-valuetext", range.value + " percent " + pair.dataset.left);
  };
  range.addEventListener("input", move);
  const choose = () => {
    const chosen = select.selectedOptions[0];
    other.src = chosen.dataset.other;
    ours.src = chosen.dataset.ours;
    other.alt = chosen.dataset.alt;
    tag.textContent = chosen.dataset.name;
  };
  select.addEventListener("change", choose);
  choose(); // a browser may remember both when a page is opened again
  move();
}
"""


@dataclass(frozen=True)
class Choice:
    """A picture that can be put beside ours.

    Attributes:
        key: of its codec.
        name: its name.
        text: what the choice says.
        ours: link of our crop.
        other: link of its crop.
    """

    key: str
    name: str
    text: str
    ours: str
    other: str


def slider(key: str, what: str, left: str, choices: Sequence[Choice], size: tuple[int, int]) -> str:
    """Our crop beside one that is chosen.

    Args:
        key: a name that no other slider of the page has.
        what: which crop it is, such as "astronaut, the centre".
        left: the name of ours.
        choices: at least one; the first is shown.
        size: width and height of a crop, in pixels.
    """
    first, (width, height) = choices[0], size
    options = "".join(
        f'<option value="{escape(c.key)}" data-ours="{escape(c.ours)}" data-other="{escape(c.other)}" '
        f'data-name="{escape(c.name)}" data-alt="{escape(f"{c.name}: {what}")}">{escape(c.text)}</option>'
        for c in choices
    )
    label = f"Divider between {left}, on the left, and the chosen picture, on the right: {what}"
    pixels = f'width="{width}" height="{height}"'
    return (
        f'<div class="compare" role="group" aria-label="{escape(what)}"><p class="what">{escape(what)}</p>'
        f'<label for="{key}">{escape(left)} beside <select id="{key}">{options}</select></label>'
        f'<div class="pair" style="--at:50%" data-left="{escape(left)}">'
        f'<img src="{escape(first.other)}" {pixels} alt="{escape(f"{first.name}: {what}")}">'
        f'<img class="first" src="{escape(first.ours)}" {pixels} alt="{escape(f"{left}: {what}")}">'
        f'<span class="tag left">{escape(left)}</span><span class="tag right">{escape(first.name)}</span>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{escape(label)}"></div></div>'
    )
