"use strict";
const bar = document.getElementById("filter");
const field = bar.querySelector("input");
const count = bar.querySelector("output");
const elsewhere = new Map();
for (const place of document.querySelectorAll("[data-of]")) {
  elsewhere.set(place.dataset.of, [...(elsewhere.get(place.dataset.of) || []), place]);
}
const items = Array.from(document.querySelectorAll("section.picture, tr.item:not([data-of])"), (item) => ({
  words: item.dataset.words,
  places: [item, ...(elsewhere.get(item.id) || [])],
  parts: Array.from(item.querySelectorAll(".part"), (part) => ({ words: part.dataset.words, place: part })),
}));
function show() {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0, whole = 0, parts = 0, all = 0;
  for (const item of items) {
    // A word that is not in the item's own words may be in those of a figure, of which only such are shown.
    const rest = words.filter((word) => !item.words.includes(word));
    const found = new Set(item.parts.filter((part) => rest.every((word) => part.words.includes(word))));
    const matches = !rest.length || found.size > 0;
    shown += matches;
    for (const place of item.places) place.hidden = !matches;
    for (const part of item.parts) {
      part.place.hidden = !found.has(part);
      const figure = part.place.matches("figure");
      all += figure;
      parts += figure && matches && !part.place.hidden;
    }
    if (matches && !rest.length) whole += 1;
  }
  const figures = shown > whole ? ", " + parts + " of " + all + " figures" : "";
  count.textContent = shown + " of " + items.length + " " + bar.dataset.noun + figures;
}
bar.hidden = false;
bar.addEventListener("submit", (event) => event.preventDefault());
field.addEventListener("input", show);
if (matchMedia("(max-width: 640px)").matches) for (const each of document.querySelectorAll("#index details")) each.open = false;
show();
