// Looks of strategies. Colours are classes of the style sheet, so that light and dark follow the
// reader; shapes tell strategies apart in grey, as in the pictures beside the page, and dashes past
// the seventh colour.

const DASHES = ["", "7 3", "2 2.5", "9 3 2 3"];

function look(slot) {
  if (slot < 0) return { colour: "reference", dash: "", shape: 0 };
  return { colour: `series-${slot % 7}`, dash: DASHES[Math.floor(slot / 7) % DASHES.length], shape: (slot + 1) % 4 };
}

function swatch(slot) {
  const { colour, dash, shape } = look(slot);
  return svg("svg", { class: `swatch ${colour}`, viewBox: "0 0 22 10", "aria-hidden": "true" },
    svg("line", { x1: 1, x2: 21, y1: 5, y2: 5, class: "line", "stroke-dasharray": dash }),
    mark(shape, 11, 5, 3.4, { class: "mark" }));
}

function mark(shape, x, y, r, attributes) {
  if (shape === 1) return svg("rect", { x: x - r, y: y - r, width: 2 * r, height: 2 * r, ...attributes });
  if (shape === 2) return svg("path", { d: `M${x} ${y - 1.2 * r}L${x + 1.2 * r} ${y + r}L${x - 1.2 * r} ${y + r}Z`, ...attributes });
  if (shape === 3) return svg("path", { d: `M${x} ${y - 1.4 * r}L${x + 1.4 * r} ${y}L${x} ${y + 1.4 * r}L${x - 1.4 * r} ${y}Z`, ...attributes });
  return svg("circle", { cx: x, cy: y, r, ...attributes });
}
