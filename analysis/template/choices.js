// The reader's choices: a series in the legends, the trade-off's axis, the model.
const entries = [...document.querySelectorAll(".entry")];
for (const entry of entries) {
  entry.addEventListener("click", () => {
    const name = entry.dataset.series;
    state.emphasis = state.emphasis === name ? null : name;
    for (const one of entries) one.setAttribute("aria-pressed", String(one.dataset.series === state.emphasis));
    updateAll();
  });
}

for (const radio of document.querySelectorAll(".axis input")) {
  radio.addEventListener("change", () => {
    for (const figure of document.querySelectorAll("[data-axis]")) figure.hidden = figure.dataset.axis !== radio.value;
    whenIdle(drawNext);
  });
}

// Hides what belongs to another model than the one chosen; panels of a model that was measured in one way alone need not
// say whose they are.
function choose(model) {
  const mine = places.filter((place) => place.closest("[data-of]")?.dataset.of === model);
  document.body.classList.toggle("one-model", new Set(mine.map((place) => place.dataset.setting)).size === 1);
  for (const part of document.querySelectorAll("[data-of]")) {
    part.classList.toggle("elsewhere", model !== "" && part.dataset.of !== model);
  }
  for (const note of document.querySelectorAll(".none")) {
    note.hidden = [...note.parentElement.querySelectorAll(".panel")].some((one) => !one.classList.contains("elsewhere"));
  }
  for (const body of document.querySelectorAll(".results tbody")) body.dispatchEvent(new Event("counted"));
  whenIdle(drawNext);
}
const model = document.getElementById("pick-model");
model?.addEventListener("input", () => choose(model.value));
if (model) addEventListener("DOMContentLoaded", () => choose(model.value)); // a reload may keep the choice
