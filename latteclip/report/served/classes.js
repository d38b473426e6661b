// The server applies each change and returns the classes, which this draws.
let state = page;
let merging = null; // the number of the class into which another one is to be merged

const counted = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const images = (n) => counted(n, "image", "images");

function draw(focus) {
  const changes = `${counted(state.actions, "change", "changes")} saved`;
  const checked = state.actions ? changes : "nobody has checked them yet";
  at("count").textContent = `${counted(state.classes.length, "class", "classes")}, ${checked}`;
  at("wall").replaceChildren(...state.classes.map(card));
  at("undo").disabled = !state.actions;
  at("result").hidden = !state.actions;
  if (focus !== undefined) document.querySelector(`[data-class="${focus}"]`)?.focus();
}

function card(one) {
  const node = element("article", "", { tabindex: 0, "data-class": one.number, "aria-label": one.name });
  const title = element("h2");
  title.append(element("bdi", one.name), element("small", ` ${images(one.images)}`));
  const pictures = element("div", "", { class: "pictures" });
  for (const [row, image] of one.pictures) {
    pictures.append(element("img", "", { src: `image/${row}`, alt: image, title: image, loading: "lazy" }));
  }
  const others = one.others.length ? `also called: ${one.others.join(", ")}` : "";
  const tools = element("p", "", { class: "tools" });
  const act = {
    r: () => rename(one, title),
    m: () => merge(one.number),
    d: () => change({ do: "drop", of: one.number }),
    x: () => change({ do: "leave_out", of: one.number }),
  };
  if (merging !== null && merging !== one.number) {
    const into = state.classes.find((other) => other.number === merging);
    tools.append(button([`Merge into ${into.name}`], act.m));
  } else {
    tools.append(button(["Rename"], act.r), button([merging === null ? "Merge" : "Cancel"], act.m), button(["Drop"], act.d), button(["Leave out"], act.x));
  }
  node.append(title, pictures, element("p", others, { class: "others" }), tools);
  node.classList.toggle("chosen", merging === one.number);
  node.addEventListener("keydown", (event) => {
    if (event.target !== node || !isPlain(event) || !(event.key in act)) return;
    event.preventDefault();
    act[event.key]();
  });
  return node;
}

function merge(number) {
  const of = merging;
  merging = of === null ? number : null;
  if (of === null || of === number) draw(number);
  else change({ do: "merge", of, other: number });
}

function rename(one, title) {
  const form = element("form");
  const input = element("input", "", { "aria-label": `New name of ${one.name}`, maxlength: 100 });
  input.value = one.name;
  form.append(input, element("button", "Save"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    change({ do: "rename", of: one.number, name: input.value });
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") draw(one.number);
  });
  title.replaceChildren(form);
  input.focus();
  input.select();
}

// null takes the last change back.
function change(action) {
  once(async () => {
    state = await send("changes", action ? [action] : []);
    draw(action?.of);
  });
}

at("undo").addEventListener("click", () => change(null));
addEventListener("keydown", (event) => {
  if (event.key === "Backspace" && isPlain(event) && state.actions) change(null);
});
draw();
