let { classes, taken } = values;
let saving = Promise.resolve();

function card(one, group) {
  const made = element("article", "", { "aria-label": one.name || `group ${group + 1}` });
  const title = element("h3");
  title.append(element("bdi", taken[group] || one.name || "no common name"), element("small", ` ${one.n} images`));
  const box = element("div", "", { class: "pictures" });
  for (const { image, source } of one.pictures)
    box.append(element("img", "", { src: source, alt: image, title: image, loading: "lazy" }));
  made.append(title, box, taken[group] ? undo(group) : form(one, group));
  return made;
}

function undo(group) {
  const tools = element("p", `“${taken[group]}” is a class now. `, { class: "tools" });
  const button = element("button", "Undo", { type: "button" });
  button.addEventListener("click", () => change(group, null));
  tools.append(button);
  return tools;
}

function form(one, group) {
  const made = element("form", "", { class: "tools" });
  const input = element("input", "", { "aria-label": `Name of the ${one.n} images`, maxlength: 100 });
  input.value = one.name;
  made.append(input, element("button", "Make it a class"));
  made.addEventListener("submit", (event) => {
    event.preventDefault();
    change(group, input.value);
  });
  return made;
}

function draw() {
  $("classes").textContent = `${classes.length} classes: ${classes.join(", ")}`;
  $("wall").replaceChildren(...values.groups.map(card));
  if (!values.groups.length) $("wall").textContent = "No images that are marked unknown look alike.";
}

function change(group, name) { saving = saving.then(() => save(group, name)); }

async function save(group, name) {
  try {
    const reply = await fetch("new/classes", {
      method: "PUT",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ group, name }),
    });
    const found = await reply.json();
    trouble(found.error || "");
    if (found.error) return;
    ({ classes, taken } = found);
    draw();
    $("status").textContent = `Saved. Run the workflow again, and labels, models and pages follow: ${values.again}`;
  } catch {
    trouble("This was not saved: the command has ended. Run it again, and reload the page.");
  }
}
draw();
