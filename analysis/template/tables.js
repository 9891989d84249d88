// Sorts tables, and filters the long ones by length and words.

// What a cell is sorted by: its data-value, else what is printed in it, as a number if it is one; "" for a dash.
function printed(cell) {
  return [...cell.childNodes].filter((node) => !["SMALL", "SPAN"].includes(node.nodeName)).map((node) => node.textContent).join("").trim();
}
function valueOf(cell) {
  const text = cell.dataset.value ?? printed(cell);
  const plain = text.replace("−", "-").replace(/[,+]|\s*[%×].*/g, "");
  return text === "–" || text === "" ? "" : plain !== "" && !Number.isNaN(+plain) ? +plain : text;
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const [index, head] of [...table.tHead.rows[0].cells].entries()) {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keys = new Map([...table.tBodies[0].rows].map((row) => [row, valueOf(row.cells[index])]));
      const compare = (a, b) => {
        const [left, right] = [keys.get(a), keys.get(b)];
        if (left === "" || right === "") return (left === "") - (right === ""); // what is not known comes last
        const order = typeof left === "number" && typeof right === "number" ? left - right : String(left).localeCompare(String(right));
        return (down ? -1 : 1) * order;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  }
}

for (const controls of document.querySelectorAll(".controls")) {
  const body = document.getElementById(controls.dataset.table).tBodies[0];
  const length = controls.querySelector("select");
  const words = controls.querySelector("input");
  const count = () => {
    const mine = [...body.rows].filter((row) => !row.classList.contains("elsewhere"));
    controls.querySelector(".count").textContent = `${mine.filter((row) => !row.hidden).length} of ${mine.length} rows`;
  };
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      const every = length.value === "every";
      const right = length.value === "longest" ? row.dataset.longest === "yes" : row.dataset.length === length.value;
      row.hidden = !(every || right) || !wanted.every((word) => text.includes(word));
    }
    count();
  };
  length.addEventListener("input", filter);
  words.addEventListener("input", filter);
  body.addEventListener("counted", count);
  filter();
}
