"use strict";
// Elements from plain calls. Text becomes text nodes and attributes are set one by one: nothing that
// comes from a run is ever read as markup, an id or a class.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// Call `react` once the page has laid out a box anew. Changes of sizes wait for the next frame:
// within the observer's own turn they are an error of the page.
function onResize(box, react) {
  new ResizeObserver(() => requestAnimationFrame(react)).observe(box);
}

// Draw into a box now, and again whenever its width changes. `draw(width)` returns an element.
function responsive(box, draw) {
  let last = 0;
  const redraw = (force) => {
    const width = Math.floor(box.clientWidth);
    if (width < 1 || (!force && width === last)) return;
    last = width;
    box.replaceChildren(draw(width));
  };
  onResize(box, () => redraw(false));
  return () => redraw(true);
}

function figure(draw, caption) {
  const box = h("div", { class: "box" });
  const redraw = responsive(box, draw);
  const element = h("figure", {}, box, caption ? h("figcaption", {}, caption) : null);
  element.redraw = redraw;
  return element;
}

function choose(label, options, value, change) {
  const list = h("select", { change: () => change(Number(list.value)) },
    options.map((text, i) => h("option", { value: i, selected: i === value }, text)));
  return h("label", { class: "choose" }, h("span", {}, label), list);
}

function slider(label, most, value, words, change) {
  const shown = h("output", {}, words(value));
  const range = h("input", {
    type: "range", min: 0, max: most, step: 1, value,
    input: () => { shown.textContent = words(Number(range.value)); change(Number(range.value)); },
  });
  return h("label", { class: "choose" }, h("span", {}, label), range, shown);
}

function section(title, ...children) {
  return h("section", {}, h("h2", {}, title), children);
}

function note(...words) {
  return h("p", { class: "note" }, words);
}

// A picture within the page; anything else that claims to be one is not shown.
function picture(address, words, kind) {
  if (typeof address !== "string" || !address.startsWith("data:image/")) return null;
  return h("img", { src: address, alt: words, class: kind, decoding: "async" });
}
