"use strict";
const page = JSON.parse(document.getElementById("values").textContent);
const at = (id) => document.getElementById(id);
const MAX_SECONDS = 120; // of an answer, for the estimate of the time left

// The answers that this page can undo or export, in their order.
let answers = [];
const asDocument = (some) => ({ plan: page.plan, dataset: page.dataset, version: page.version, classes: page.classes, answers: some });

// The server saves each answer before the next question, beside those of other pages.
const server = {
  async send(way, options) {
    let reply;
    try {
      reply = await fetch(way, options);
    } catch {
      throw new Error("The server does not reply. All earlier answers are saved. Start the same command again, and open the address that it prints.");
    }
    const values = await reply.json();
    if (values.error) throw new Error(values.error);
    return values;
  },
  load() {
    answers = page.last;
    return page.state;
  },
  save(added, removed) {
    return this.send("answers", {
      method: "PUT",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...asDocument(added), removed: removed.map((one) => one.image) }),
    });
  },
  result() { return this.send("result"); },
};

// Without a server, questions are in this page, and answers in the browser's memory.
const offline = {
  place: `latteclip-audit-${page.plan}`,
  load() {
    try {
      const saved = JSON.parse(localStorage.getItem(this.place)) || [];
      answers = saved.filter((one) => page.questions.some((question) => question.image === one.image));
    } catch { /* a browser that saves nothing for files: the answers live as long as the page */ }
    return this.state(answers);
  },
  state(given) {
    const upcoming = page.questions.filter((question) => !given.some((one) => one.image === question.image));
    return { answered: given.length, total: page.questions.length, upcoming, status: "" };
  },
  save(added, removed) {
    const changed = [...answers.filter((one) => !removed.includes(one)), ...added];
    try {
      localStorage.setItem(this.place, JSON.stringify(changed));
    } catch { /* as above */ }
    return this.state(changed);
  },
};

const source = page.offline ? offline : server;
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
  const question = state.upcoming[0];
  const address = question.picture;
  at("lost").hidden = Boolean(address);
  picture.hidden = !address;
  if (address) picture.src = address;
  at("options").replaceChildren(...question.options.map((name, n) => {
    const item = document.createElement("li");
    item.append(choice(n + 1, name, () => give({ answer: "class", class: name })));
    return item;
  }));
  if (at("search")) {
    at("search").value = "";
    at("search").blur(); // the keys choose again
  }
  since = performance.now();
  if (!page.offline && state.upcoming[1]) new Image().src = state.upcoming[1].picture;
}

function show(next) {
  state = next;
  const over = state.upcoming.length === 0;
  at("progress").max = state.total;
  at("progress").value = state.answered;
  at("count").textContent = `${state.answered} of ${state.total}${over ? "" : remaining()}`;
  at("asking").hidden = over;
  at("hint").hidden = over;
  at("done").hidden = !over;
  at("status").textContent = state.status;
  at("undo").disabled = answers.length === 0;
  at("export").hidden = !page.offline || answers.length === 0;
  at("finish").hidden = page.offline || over || state.answered === 0;
  at("reveal").hidden = page.offline || over || state.answered === 0;
  hideResult();
  if (!over) ask();
  else if (page.offline) {
    at("advice").textContent = "Export the answers. This command imports them:";
    at("steps").replaceChildren(element("pre", page.take));
  } else showResult(source.result());
}

// A key press while an answer is being saved counts for nothing.
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
  if (state === null || state.upcoming.length === 0) return;
  once(async () => {
    const { image, content, phase } = state.upcoming[0];
    const added = { image, content, phase, ...answer };
    const next = await source.save([added], []);
    answers = [...answers, added];
    pace.push(Math.min(MAX_SECONDS, (performance.now() - since) / 1000));
    return next;
  });
}

function undo() {
  if (answers.length === 0) return;
  once(async () => {
    const last = answers.at(-1);
    const next = await source.save([], [last]);
    answers = answers.filter((one) => one !== last);
    return next;
  });
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
  const node = document.createElement(name);
  node.textContent = text;
  if (name === "pre") node.tabIndex = 0; // it may scroll
  return node;
}

function table(head, rows) {
  const node = document.createElement("table");
  cells(node.createTHead().insertRow(), "th", head);
  const body = node.createTBody();
  for (const row of rows) cells(body.insertRow(), "td", row);
  return node;
}

function trouble(error) {
  at("trouble").textContent = error.message;
  at("trouble").hidden = false;
}

async function showResult(wanted) {
  let result;
  try {
    result = await wanted;
  } catch (error) {
    trouble(error);
    return;
  }
  at("verdict").textContent = result.sentence;
  at("advice").textContent = "All answers are saved. End the server with Ctrl-C, and close this page.";
  at("steps").replaceChildren(...result.steps.flatMap(([text, command]) => [element("p", text), element("pre", command)]));
  at("figures").replaceChildren(...result.tables.map(([head, rows]) => table(head, rows)));
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
  return showResult(source.result());
});
at("finish").addEventListener("click", () => {
  at("done").hidden = false;
  showResult(source.result());
});
at("export").addEventListener("click", () => {
  const text = JSON.stringify(asDocument(answers), null, 1);
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
  else at("search").setCustomValidity("No class has this name. Choose a class of the list.");
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

once(async () => source.load());
