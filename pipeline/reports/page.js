"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const svg = (name, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const text = (name, content) => Object.assign(document.createElement(name), { textContent: content });
const curve = (values, title, colour) => {
  const known = values.filter((value) => value !== null), low = Math.min(...known), high = Math.max(...known);
  const x = (at) => 50 + (at * 260) / Math.max(1, values.length - 1), y = (value) => 110 - (95 * (value - low)) / (high - low || 1);
  const picture = svg("svg", { viewBox: "0 0 320 130", role: "img", "aria-label": `${title}, ${values.length} epochs, from ${values[0]} to ${values.at(-1)}` });
  const points = values.map((value, at) => (value === null ? "" : `${x(at)},${y(value)}`)).join(" ");
  picture.append(svg("path", { d: "M50 10V110H310", fill: "none", stroke: "var(--rule)" }), svg("polyline", { points, fill: "none", stroke: colour, "stroke-width": 2 }));
  const label = (content, attributes) => {
    const element = svg("text", { "font-size": 10, fill: "var(--muted)", ...attributes });
    element.textContent = content;
    picture.append(element);
  };
  const short = (value) => String(Number(value.toPrecision(3)));
  label(short(high), { x: 46, y: 18, "text-anchor": "end" });
  label(short(low), { x: 46, y: 112, "text-anchor": "end" });
  label(`${title}, epochs 1 to ${values.length}`, { x: 50, y: 126 });
  return picture;
};
const settings = (own) => {
  const table = document.createElement("table"), body = table.createTBody(), all = { ...data.shared.common, ...own };
  for (const key of Object.keys(all).sort((one, other) => (other in own) - (one in own) || one.localeCompare(other))) {
    const row = body.insertRow();
    row.className = key in own ? "own" : "";
    row.append(text("td", key), text("td", typeof all[key] === "string" ? all[key] : JSON.stringify(all[key])));
  }
  return table;
};
const fill = (details) => {
  const one = data.trials[details.dataset.number], inside = text("div", ""), left = text("div", ""), right = text("div", "");
  inside.className = "inside";
  right.className = "scroll";
  for (const line of one.lines) left.append(text("p", line));
  if (one.curve.length) left.append(curve(one.curve, data.shared.metric, "var(--series-1)"));
  if (one.losses.length) left.append(curve(one.losses, "loss", "var(--series-2)"));
  right.append(settings(one.own));
  inside.append(left, right);
  details.append(inside);
};
for (const details of document.querySelectorAll(".trial"))
  details.addEventListener("toggle", () => details.open && details.children.length === 1 && fill(details));
document.querySelector(".filter input").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const details of document.querySelectorAll(".trial")) details.hidden = !details.textContent.toLowerCase().includes(wanted);
});
for (const table of document.querySelectorAll(".sortable"))
  for (const heading of table.tHead.rows[0].cells) {
    heading.tabIndex = 0;
    heading.addEventListener("keydown", (event) => event.key === "Enter" && heading.click());
    heading.addEventListener("click", () => {
      const at = heading.cellIndex, up = heading.getAttribute("aria-sort") === "descending";
      const value = (row) => row.cells[at].dataset.value ?? row.cells[at].textContent.trim();
      const number = (row) => (value(row) === "" ? -Infinity : Number(value(row)));
      const order = (one, other) => (isNaN(number(one)) || isNaN(number(other)) ? value(other).localeCompare(value(one)) : number(other) - number(one) || 0);
      const rows = [...table.tBodies[0].rows].sort(order);
      table.tBodies[0].append(...(up ? rows.reverse() : rows));
      for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    });
  }
