// Tables whose columns are never cut off: where one does not fit, its rows become cards.

function table(head, rows, words) {
  const body = rows.map((row) => h("tr", { class: row.kind || null }, row.cells.map((cell, i) => i === 0
    ? h("th", { scope: "row" }, cell)
    : h("td", { "data-label": head[i] }, h("span", {}, cell)))));
  const element = h("table", { "aria-label": words },
    h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, body));
  const box = h("div", { class: "table" }, element);
  const fit = () => {
    box.classList.remove("cards");
    if (element.scrollWidth > box.clientWidth + 1) box.classList.add("cards");
  };
  let last = 0;
  onResize(box, () => {
    if (box.clientWidth !== last) { last = box.clientWidth; fit(); }
  });
  return box;
}

function named(name, slot) {
  return h("span", { class: "named" }, swatch(slot), name);
}
