"use strict";
const told = JSON.parse(document.getElementById("values").textContent);
const at = (id) => document.getElementById(id);
const LONGEST = 120; // seconds of an answer; who goes for a coffee does not count

// Questions come from the server, which writes each answer to the disk before it replies.
const server = {
  async ask(way, body) {
    const post = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    let reply;
    try {
      reply = await fetch(way, body === undefined ? {} : post);
    } catch {
      throw new Error("The server does not reply. All answers so far are kept: start it again with the same command, and open the address that it says.");
    }
    const values = await reply.json();
    if (values.error) throw new Error(values.error);
    return values;
  },
  state() { return this.ask("state"); },
  answer(number, answer) { return this.ask("answer", { number, ...answer }); },
  undo() { return this.ask("undo", {}); },
  result() { return this.ask("result"); },
};

// Or they are in this page, and answers in the browser's memory until they are exported.
const own = {
  place: `latteclip-audit-${told.plan}`,
  answers: [],
  load() {
    try {
      const kept = JSON.parse(localStorage.getItem(this.place)) || [];
      const asked = told.questions.map((one) => one.image);
      if (kept.every((one, n) => one.image === asked[n])) this.answers = kept;
    } catch { /* a browser that keeps nothing for files: the answers live as long as the page */ }
  },
  keep() {
    try {
      localStorage.setItem(this.place, JSON.stringify(this.answers));
    } catch { /* as above */ }
    return this.state();
  },
  async state() {
    const number = this.answers.length;
    const total = told.questions.length;
    return { number: number < total ? number : null, answered: number, total, ...told.questions[number] };
  },
  async answer(number, answer) {
    if (number === this.answers.length) this.answers.push({ image: told.questions[number].image, ...answer });
    return this.keep();
  },
  async undo() {
    this.answers.pop();
    return this.keep();
  },
};

const source = told.offline ? own : server;
const pace = [];
let state = null;
let since = 0;
let busy = false;

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

function remaining() {
  if (pace.length < 3) return "";
  const minutes = Math.round((median(pace) * (state.total - state.answered)) / 60);
  return minutes < 1 ? ", less than a minute left" : `, about ${minutes} min left`;
}

function choice(key, name, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "choice";
  const text = document.createElement("bdi");
  text.textContent = name;
  if (key <= 9) {
    const mark = document.createElement("kbd");
    mark.textContent = key;
    button.append(mark, " ");
  }
  button.append(text);
  button.addEventListener("click", act);
  return button;
}

function ask() {
  const picture = at("picture");
  const address = told.offline ? state.picture : `image/${state.number}`;
  at("lost").hidden = Boolean(address);
  picture.hidden = !address;
  if (address) picture.src = address;
  at("options").replaceChildren(...state.options.map((name, n) => {
    const item = document.createElement("li");
    item.append(choice(n + 1, name, () => give({ answer: "class", class: name })));
    return item;
  }));
  if (at("search")) {
    at("search").value = "";
    at("search").blur(); // the keys choose again
  }
  since = performance.now();
  if (!told.offline && state.number + 1 < state.total) new Image().src = `image/${state.number + 1}`;
}

function show(next) {
  state = next;
  const over = state.number === null;
  at("progress").max = state.total;
  at("progress").value = state.answered;
  at("count").textContent = `${state.answered} of ${state.total}${over ? "" : remaining()}`;
  at("asking").hidden = over;
  at("hint").hidden = over;
  at("done").hidden = !over;
  at("undo").disabled = state.answered === 0;
  at("export").hidden = !told.offline || state.answered === 0;
  at("finish").hidden = told.offline || over || state.answered === 0;
  at("reveal").hidden = told.offline || over || state.answered === 0;
  hideResult();
  if (!over) ask();
  else if (told.offline) {
    at("advice").textContent = "Export the answers. This command takes them and says which model is best:";
    at("steps").replaceChildren(element("pre", told.take));
  } else tell(source.result());
}

// One thing at a time: a second press while an answer is on its way is none.
async function once(act) {
  if (busy) return;
  busy = true;
  try {
    const next = await act();
    at("trouble").hidden = true;
    if (next) show(next);
  } catch (error) {
    trouble(error);
  } finally {
    busy = false;
  }
}

function give(answer) {
  if (state === null || state.number === null) return;
  once(async () => {
    const next = await source.answer(state.number, answer);
    pace.push(Math.min(LONGEST, (performance.now() - since) / 1000));
    return next;
  });
}

function undo() {
  once(() => source.undo());
}

function cells(row, kind, texts) {
  for (const [n, text] of texts.entries()) {
    const cell = document.createElement(n === 0 || kind === "th" ? "th" : "td");
    if (n > 0) cell.className = "num";
    cell.scope = kind === "th" ? "col" : n === 0 ? "row" : "";
    cell.textContent = text;
    row.append(cell);
  }
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  if (name === "pre") made.tabIndex = 0; // it may scroll
  return made;
}

function table(head, rows) {
  const made = document.createElement("table");
  cells(made.createTHead().insertRow(), "th", head);
  const body = made.createTBody();
  for (const row of rows) cells(body.insertRow(), "td", row);
  return made;
}

function trouble(error) {
  at("trouble").textContent = error.message;
  at("trouble").hidden = false;
}

async function tell(wanted) {
  let result;
  try {
    result = await wanted;
  } catch (error) {
    trouble(error);
    return;
  }
  at("verdict").textContent = result.sentence;
  at("advice").textContent = "All answers are on the disk. End the server with Ctrl-C, and close this page.";
  at("steps").replaceChildren(...result.steps.flatMap(([text, command]) => [element("p", text), ...(command ? [element("pre", command)] : [])]));
  at("figures").replaceChildren(
    table(["model", "right, %", "95 % interval"], result.accuracies),
    table(["difference", "points", "95 % interval", ""], result.comparisons),
  );
  at("figures").hidden = false;
}

function hideResult() {
  at("figures").hidden = true;
  at("reveal").setAttribute("aria-expanded", "false");
  at("reveal").textContent = "Show the result so far";
}

at("reveal").addEventListener("click", () => {
  if (!at("figures").hidden) return hideResult();
  at("reveal").setAttribute("aria-expanded", "true");
  at("reveal").textContent = "Hide the result";
  return tell(source.result());
});
at("finish").addEventListener("click", () => {
  at("done").hidden = false;
  tell(source.result());
});
at("export").addEventListener("click", () => {
  const { plan, dataset, version } = told;
  const text = JSON.stringify({ plan, dataset, version, answers: own.answers }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "answers.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});
at("none").addEventListener("click", () => give({ answer: "none" }));
at("unsure").addEventListener("click", () => give({ answer: "unsure" }));
at("undo").addEventListener("click", undo);
at("picture").addEventListener("error", () => {
  at("picture").hidden = true;
  at("lost").hidden = false;
});
at("other")?.addEventListener("submit", (event) => {
  event.preventDefault();
  const wanted = at("search").value.trim().toLowerCase();
  const option = [...at("classes").options].find((one) => one.value.toLowerCase() === wanted);
  if (option) give({ answer: "class", class: option.value });
  else at("search").setCustomValidity("No class has this name: choose one of the list.");
  at("search").reportValidity();
});
at("search")?.addEventListener("input", () => at("search").setCustomValidity(""));

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (at("search") && event.target === at("search")) {
    if (event.key === "Escape") at("search").blur();
    return;
  }
  if (state === null) return;
  const options = at("options").querySelectorAll("button");
  const acts = {
    c: () => at("unsure").click(),
    Backspace: undo,
    ...(at("search") ? { "/": () => at("search").focus() } : { 0: () => at("none").click() }),
  };
  const act = options[Number(event.key) - 1] ? () => options[Number(event.key) - 1].click() : acts[event.key];
  if (act && (!at("asking").hidden || event.key === "Backspace")) {
    event.preventDefault();
    act();
  }
});

if (told.offline) own.load();
once(() => source.state());
