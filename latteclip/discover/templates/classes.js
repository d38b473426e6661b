"use strict";
// The server applies each action and returns the classes, which this draws.
const values = JSON.parse(document.getElementById("values").textContent);
let state = values;
let merging = null; // the number of the class into which another one is to be merged
let saving = Promise.resolve();
const $ = (id) => document.getElementById(id);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function button(text, run) {
  const made = element("button", text, { type: "button" });
  made.addEventListener("click", run);
  return made;
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

const counted = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const images = (n) => counted(n, "image", "images");

function draw(focus) {
  const total = state.classes.reduce((sum, one) => sum + one.images, 0);
  const changes = `${counted(state.actions, "change", "changes")} so far.`;
  const checked = state.actions ? changes : "Nobody has checked them yet.";
  $("count").textContent = `${counted(state.classes.length, "class", "classes")} of ${images(total)}; ${values.suggested} were suggested. ${checked}`;
  $("wall").replaceChildren(...state.classes.map(card));
  $("undo").disabled = !state.actions;
  if (focus !== undefined) document.querySelector(`[data-class="${focus}"]`)?.focus();
}

function card(one) {
  const made = element("article", "", { tabindex: 0, "data-class": one.number, "aria-label": one.name });
  const title = element("h2");
  title.append(element("bdi", one.name), element("small", ` ${images(one.images)}`));
  const pictures = element("div", "", { class: "pictures" });
  for (const { row, image, sure } of one.pictures) {
    const label = sure ? image : `${image}, uncertain`;
    pictures.append(element("img", "", { src: `image/${row}`, alt: label, title: label, "data-sure": sure, loading: "lazy" }));
  }
  const others = one.others.length ? `also called: ${one.others.join(", ")}` : "";
  const tools = element("p", "", { class: "tools" });
  const run = {
    r: () => rename(one, title),
    m: () => merge(one.number),
    d: () => act({ do: "drop", of: one.number }),
  };
  if (merging !== null && merging !== one.number) {
    const into = state.classes.find((other) => other.number === merging);
    tools.append(button(`Merge into ${into.name}`, run.m));
  } else {
    tools.append(button("Rename", run.r), button(merging === null ? "Merge" : "Cancel", run.m), button("Drop", run.d));
  }
  made.append(title, pictures, element("p", others, { class: "others" }), tools);
  made.classList.toggle("chosen", merging === one.number);
  made.addEventListener("keydown", (event) => {
    if (event.target !== made || event.ctrlKey || event.metaKey || event.altKey || !(event.key in run)) return;
    event.preventDefault();
    run[event.key]();
  });
  return made;
}

function merge(number) {
  const of = merging;
  merging = of === null ? number : null;
  if (of === null || of === number) draw(number);
  else act({ do: "merge", of, other: number });
}

function rename(one, title) {
  const form = element("form");
  const input = element("input", "", { "aria-label": `New name of ${one.name}`, maxlength: 100 });
  input.value = one.name;
  form.append(input, element("button", "Save"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act({ do: "rename", of: one.number, name: input.value });
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") draw(one.number);
    event.stopPropagation();
  });
  title.replaceChildren(form);
  input.focus();
  input.select();
}

function act(action) {
  saving = saving.then(() => save(action));
}

async function save(action) {
  trouble("");
  try {
    const reply = await fetch("actions", {
      method: "PUT",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ action }),
    });
    const found = await reply.json();
    if (found.error) {
      trouble(found.error);
      return;
    }
    state = found;
    draw(action?.of);
    $("status").textContent = `Saved. Run the workflow again, and the classes follow: ${values.again}`;
  } catch {
    trouble("This was not saved: the command has ended. Run it again, and reload the page.");
  }
}

$("undo").addEventListener("click", () => act(null));
document.addEventListener("keydown", (event) => {
  if (event.key === "Backspace" && !event.ctrlKey && !event.metaKey && !event.altKey && state.actions) act(null);
});
draw();
