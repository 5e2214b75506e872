"use strict";
const bar = document.getElementById("filter");
const field = bar.querySelector("input");
const count = bar.querySelector("output");
const pictures = Array.from(document.querySelectorAll("section.picture"), (section) => ({
  words: section.dataset.words,
  parts: [section, document.getElementById("index-" + section.id)],
}));
function show() {
  const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const picture of pictures) {
    const matches = words.every((word) => picture.words.includes(word));
    shown += matches;
    for (const part of picture.parts) part.hidden = !matches;
  }
  count.textContent = shown + " of " + pictures.length + " pictures";
}
bar.hidden = false;
bar.addEventListener("submit", (event) => event.preventDefault());
field.addEventListener("input", show);
if (matchMedia("(max-width: 640px)").matches) document.querySelector("#index details").open = false;
show();
