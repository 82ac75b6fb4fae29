"""The contrast of every text on a page in a browser, as WCAG 2 measures it: colours and opacities as they are drawn."""

from __future__ import annotations

from playwright.sync_api import Page

_FAINT = r"""() => {
  const read = (text) => {
    const found = text.match(/^(rgba?|color)\((?:srgb )?([^)]+)\)$/);
    if (!found) return null;
    const values = found[2].split(/[ ,/]+/).map(Number), scale = found[1] === "color" ? 255 : 1;
    return [...values.slice(0, 3).map((value) => value * scale), values[3] ?? 1];
  };
  const ancestors = (element) => element ? [element, ...ancestors(element.parentElement)] : [];
  const opacity = (element) => ancestors(element).reduce((all, one) => all * getComputedStyle(one).opacity, 1);
  const over = (colour, ground, part) => [0, 1, 2].map((i) => colour[i] * part + ground[i] * (1 - part));
  const ground = (element) => ancestors(element).reverse().reduce((below, one) => {
    const colour = read(getComputedStyle(one).backgroundColor);
    return colour && colour[3] ? over(colour, below, colour[3] * opacity(one)) : below;
  }, [255, 255, 255]);
  const luminance = (colour) => colour.map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const faint = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim(), element = walk.currentNode.parentElement;
    const style = getComputedStyle(element), range = document.createRange();
    range.selectNodeContents(walk.currentNode);
    const box = range.getBoundingClientRect(), svg = element.namespaceURI.includes("svg");
    if (!text || box.width < 2 || style.visibility === "hidden" || /Material/.test(style.fontFamily)) continue;
    if (element.closest("script, style, [data-testid=stSlider]")) continue;
    const colour = read(svg ? style.fill : style.color), below = ground(element);
    if (!colour) { faint.push(`${text}: ${style.color} is not understood`); continue; }
    const shown = over(colour, below, colour[3] * opacity(element));
    const [dark, bright] = [luminance(shown), luminance(below)].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const contrast = (bright + 0.05) / (dark + 0.05);
    seen += 1;
    const off = element.closest("[disabled], [aria-disabled=true]");
    if (contrast < (off ? 1.5 : large ? 3 : 4.5)) faint.push(`${contrast.toFixed(2)} ${text.slice(0, 60)}`);
  }
  return [seen, faint];
}"""


def faint(page: Page) -> list[str]:
    """The texts of a page whose contrast is below AA (4.5; 3 where they are large), with it. Of what is
    switched off, for which AA asks nothing: those that can hardly be seen (1.5). Charts' canvases are not read."""
    seen, found = page.evaluate(_FAINT)
    assert seen > 20, "there is text to be read"
    return found
