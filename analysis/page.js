// Draws the charts from the specs in the page, sorts tables, and filters the long tables by length and text.
"use strict";
for (const place of document.querySelectorAll("[data-spec]")) {
  const spec = JSON.parse(document.getElementById(place.dataset.spec).textContent);
  vegaEmbed(place, spec, { renderer: "svg", actions: false, ast: true, tooltip: { theme: "custom" } });
}
for (const table of document.querySelectorAll("table.sortable")) {
  for (const [index, head] of [...table.tHead.rows[0].cells].entries()) {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[index].dataset.value;
      const compare = (a, b) => {
        const [left, right] = [key(a), key(b)];
        if (left === "" || right === "") return (left === "") - (right === "");
        const numeric = left - right;
        const sign = down ? -1 : 1;
        return sign * (Number.isNaN(numeric) ? left.localeCompare(right) : numeric);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  }
}
for (const controls of document.querySelectorAll(".controls")) {
  const body = document.getElementById(controls.dataset.table).tBodies[0];
  const length = controls.querySelector("select");
  const words = controls.querySelector("input");
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      const every = length.value === "every";
      const right = length.value === "longest" ? row.dataset.longest === "yes" : row.dataset.length === length.value;
      row.hidden = !(every || right) || !wanted.every((word) => text.includes(word));
    }
  };
  length.addEventListener("input", filter);
  words.addEventListener("input", filter);
  filter();
}
