// The page holds the actions and replays them as latteclip/discover/proposal.py does.
let actions = values.actions, revision = values.revision, questions = values.questions;
let merging = null, saving = Promise.resolve();
const SHOWN = 8, OTHERS = 4;

const sorted = (leaves) => [...leaves].sort((a, b) => a - b);
const same = (a, b) => sorted(a).join() === sorted(b).join();
const clean = (name) => name.toLowerCase().split(/\s+/).filter(Boolean).join(" ");

function split(leaves) {
  const inside = new Map(leaves.map((leaf) => [leaf, [leaf]]));
  while (inside.size > 1) {
    const node = Math.min(...inside.keys()), part = inside.get(node), above = values.tree[node];
    inside.delete(node);
    const other = inside.get(above) || [];
    if (other.length && inside.size === 1) return [sorted(other), sorted(part)].sort((x, y) => x[0] - y[0]);
    inside.set(above, other.concat(part));
  }
  return null;
}

function freeName(state, name) {
  const taken = new Set([...state.names.values()].map(clean));
  let number = 2;
  while (taken.has(clean(`${name} ${number}`))) number += 1;
  return `${name} ${number}`;
}

function replay() {
  const state = { leaves: new Map(), names: new Map(), next: values.classes.length, none: new Set(), asked: new Set() };
  values.classes.forEach((leaves, k) => { state.leaves.set(k, leaves); state.names.set(k, values.names[k]); });
  for (const action of actions) {
    const { of, other } = action, leaves = state.leaves.get(of);
    if (["keep", "split", "merge"].includes(action.do))
      state.asked.add(sorted(leaves.concat(state.leaves.get(other) || [])).join());
    if (action.do === "rename") state.names.set(of, action.name);
    if (action.do === "merge") {
      state.leaves.set(of, sorted(leaves.concat(state.leaves.get(other))));
      state.leaves.delete(other); state.names.delete(other);
    }
    if (action.do === "split") {
      const [first, second] = split(leaves);
      state.leaves.set(of, first); state.leaves.set(state.next, second);
      state.names.set(state.next, freeName(state, state.names.get(of)));
      state.next += 1;
    }
    if (action.do === "drop") { state.leaves.delete(of); state.names.delete(of); }
    if (action.do === "none" && !state.none.delete(action.image)) state.none.add(action.image);
  }
  return state;
}

const size = (leaves) => leaves.reduce((sum, leaf) => sum + values.leaves[leaf].n, 0);

function otherNames(leaves, name) {
  const counts = new Map();
  for (const leaf of leaves)
    for (const [term, n] of Object.entries(values.leaves[leaf].terms)) counts.set(term, (counts.get(term) || 0) + n);
  const found = [...counts].filter(([term]) => term !== name).sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  return found.slice(0, OTHERS).map(([term]) => term);
}

function pictures(leaves, state, of) {
  const box = element("div", "", { class: "pictures" });
  const every = leaves.flatMap((leaf) => values.leaves[leaf].pictures);
  const sure = every.filter((one) => one.sure), doubtful = every.filter((one) => !one.sure);
  const shown = sure.slice(0, SHOWN - Math.min(3, doubtful.length)).concat(doubtful);
  for (const one of shown.slice(0, SHOWN)) {
    const label = `${one.image}${one.sure ? "" : ", in doubt"}`;
    const image = element("img", "", { src: one.source, alt: label, loading: "lazy" });
    const button = element("button", "", { type: "button", "data-sure": one.sure, title: label });
    button.setAttribute("aria-pressed", state.none.has(one.image));
    button.append(image);
    button.addEventListener("click", () => act({ do: "none", of, image: one.image }));
    box.append(button);
  }
  return box;
}

function card(k, state) {
  const leaves = state.leaves.get(k), name = state.names.get(k);
  const made = element("article", "", { tabindex: 0, "data-class": k, "aria-label": name });
  const title = element("h3");
  title.append(element("bdi", name), element("small", ` ${size(leaves)} images`));
  made.append(title);
  const above = values.kinds.find(([kind]) => kind === k);
  if (above && state.names.has(above[1])) made.append(element("p", `a kind of ${state.names.get(above[1])}`, { class: "note" }));
  made.append(pictures(leaves, state, k));
  const others = otherNames(leaves, name);
  if (others.length) made.append(element("p", `also called: ${others.join(", ")}`, { class: "others" }));
  const tools = element("p", "", { class: "tools" });
  const button = (text, run) => {
    const one = element("button", text, { type: "button" });
    one.addEventListener("click", run);
    tools.append(one);
  };
  if (merging !== null && merging !== k) button(`Merge into ${state.names.get(merging)}`, () => merge(k));
  else {
    button("Rename", () => rename(made, k, name));
    button(merging === k ? "Cancel" : "Merge", () => { merging = merging === k ? null : k; draw(k); });
    if (split(leaves)) button("Split", () => act({ do: "split", of: k }));
    button("Drop", () => act({ do: "drop", of: k }));
  }
  made.append(tools);
  made.classList.toggle("chosen", merging === k);
  made.addEventListener("keydown", (event) => {
    if (event.target !== made || event.ctrlKey || event.metaKey || event.altKey) return;
    const run = {
      r: () => rename(made, k, name),
      m: () => (merging === null || merging === k ? ((merging = merging === k ? null : k), draw(k)) : merge(k)),
      s: () => split(leaves) && act({ do: "split", of: k }),
      d: () => act({ do: "drop", of: k }),
    }[event.key];
    if (run) { event.preventDefault(); event.stopPropagation(); run(); }
  });
  return made;
}

function merge(k) { const of = merging; merging = null; act({ do: "merge", of, other: k }, of); }

function rename(made, k, name) {
  const form = element("form"), input = element("input", "", { "aria-label": `New name of ${name}`, maxlength: 100 });
  input.value = name;
  form.append(input, element("button", "Save"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = input.value.split(/\s+/).filter(Boolean).join(" ");
    const state = replay();
    const taken = [...state.names].some(([other, one]) => other !== k && clean(one) === clean(wanted));
    if (!wanted || taken) { trouble(`The name “${wanted}” is empty or in use.`); input.focus(); return; }
    act({ do: "rename", of: k, name: wanted }, k);
  });
  input.addEventListener("keydown", (event) => { if (event.key === "Escape") draw(k); event.stopPropagation(); });
  made.querySelector("h3").replaceChildren(form);
  input.focus(); input.select();
}

function current(state) {
  const of = (leaves) => [...state.leaves].find(([, one]) => same(one, leaves));
  for (const one of questions) {
    const found = one.leaves.map(of);
    if (found.every(Boolean) && !state.asked.has(sorted(one.leaves.flat()).join()))
      return { do: one.do, of: found[0][0], other: found[1] ? found[1][0] : undefined };
  }
  return null;
}

let asking = null;
function ask(state) {
  asking = current(state);
  $("question").hidden = !asking;
  if (!asking) return;
  const { of, other } = asking;
  const sides = asking.do === "merge" ? [state.leaves.get(of), state.leaves.get(other)] : split(state.leaves.get(of));
  $("asked").textContent = asking.do === "merge"
    ? `Are “${state.names.get(of)}” and “${state.names.get(other)}” the same class?`
    : `Are these two classes, and not one, “${state.names.get(of)}”?`;
  $("sides").replaceChildren(...sides.map((leaves, i) => {
    const box = element("div");
    box.append(element("p", `${size(leaves)} images: ${otherNames(leaves, "").join(", ")}`));
    box.append(pictures(leaves, state, i && other !== undefined ? other : of));
    return box;
  }));
}

function draw(focus) {
  const state = replay(), numbers = [...state.leaves.keys()];
  numbers.sort((a, b) => size(state.leaves.get(b)) - size(state.leaves.get(a)) || a - b);
  const total = size([...state.leaves.values()].flat());
  const looked = actions.length ? `${actions.length} actions so far.` : "Nobody has looked at them yet.";
  $("count").textContent = `${numbers.length} classes of ${total} images; ${values.suggested} were suggested. ${looked}`;
  $("wall").replaceChildren(...numbers.map((k) => card(k, state)));
  $("undo").disabled = !actions.length;
  ask(state);
  const place = focus !== undefined && document.querySelector(`[data-class="${focus}"]`);
  if (place) place.focus();
}

function act(action, focus) {
  actions = [...actions, action];
  changed(focus ?? action.of);
}

function changed(focus) {
  trouble("");
  draw(focus);
  if (!values.offline) saving = saving.then(save);
}

async function save() {
  try {
    const reply = await fetch("actions", {
      method: "PUT",
      headers: { "Content-Type": "application/json", "If-Match": `"${revision}"` },
      body: JSON.stringify({ proposal: values.proposal, actions }),
    });
    const found = await reply.json();
    if (found.error) { trouble(found.error); return; }
    ({ revision, questions } = found);
    if (reply.status === 412) {
      actions = found.actions;
      draw();
    } else ask(replay());
    trouble(found.message || "");
    $("status").textContent = `Saved. Run the workflow again, and the classes follow: ${values.again}`;
  } catch {
    trouble("This was not saved: the command has ended. Run it again, and reload the page.");
  }
}

function undo() { if (actions.length) { actions = actions.slice(0, -1); changed(); } }
function answer(yes) {
  if (!asking) return;
  const { of, other } = asking;
  act(yes ? { do: asking.do, of, ...(other === undefined ? {} : { other }) } : { do: "keep", of, ...(other === undefined ? {} : { other }) });
}

$("undo").addEventListener("click", undo);
$("yes").addEventListener("click", () => answer(true));
$("no").addEventListener("click", () => answer(false));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input")) return;
  const run = { y: () => answer(true), n: () => answer(false), Backspace: undo }[event.key];
  if (run) { event.preventDefault(); run(); }
});
$("by_looks").hidden = !values.by_looks;
$("further").hidden = values.offline || !values.marked;
if (values.offline) {
  $("export").hidden = false;
  $("status").textContent = `Nothing is saved until you export. Then run: ${values.take}`;
  $("export").addEventListener("click", () => {
    const text = JSON.stringify({ proposal: values.proposal, actions });
    const link = element("a", "", { download: "classes.json" });
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
draw();
