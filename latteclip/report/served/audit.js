// The answers of this visit, which can be undone or exported, in their order.
let answers = [];
const asDocument = (some) => ({ plan: page.plan, classes: page.classes, answers: some });

// The server saves each answer before the next question, beside those of other pages.
const server = {
  load() {
    return page.state;
  },
  save(added, removed) {
    return send("changes", { ...asDocument(added), removed: removed.map((one) => one.image) });
  },
};

// Without a server, questions are in this page, and answers in the browser's memory, which all files share.
const offline = {
  place: `latteclip-${page.digest}`,
  load() {
    try {
      answers = JSON.parse(localStorage.getItem(this.place)) || [];
    } catch { /* a browser that saves nothing for files: the answers live as long as the page */ }
    return this.state(answers);
  },
  state(given) {
    const upcoming = page.questions.filter((question) => !given.some((one) => one.image === question.image));
    return { answered: given.length, total: page.questions.length, upcoming };
  },
  save(added, removed) {
    const changed = [...answers.filter((one) => !removed.includes(one)), ...added];
    try {
      localStorage.setItem(this.place, JSON.stringify(changed));
    } catch { /* as above */ }
    return this.state(changed);
  },
};

const isOffline = "questions" in page;
const written = new Map(Object.entries(page.written)); // names as the person wrote them
const source = isOffline ? offline : server;
let state = null;

function option(name, n) {
  const key = n < 9 ? [element("kbd", n + 1), " "] : [];
  const item = element("li");
  const act = () => give({ answer: "class", class: name });
  item.append(button([...key, element("bdi", written.get(name) ?? name)], act, { class: "choice" }));
  return item;
}

function ask() {
  const question = state.upcoming[0];
  const address = question.picture;
  at("lost").hidden = Boolean(address);
  at("picture").hidden = !address;
  if (address) at("picture").src = address;
  at("options").replaceChildren(...question.options.map(option));
  if (at("search")) {
    at("search").value = "";
    at("search").blur(); // the keys choose again
  }
  if (!isOffline && state.upcoming[1]) new Image().src = state.upcoming[1].picture;
}

async function show(next) {
  state = next;
  const isOver = state.upcoming.length === 0;
  at("progress").max = state.total;
  at("progress").value = state.answered;
  at("count").textContent = `${state.answered} of ${state.total}`;
  at("asking").hidden = isOver;
  at("hint").hidden = isOver;
  at("undo").disabled = answers.length === 0;
  at("export").hidden = !isOffline || answers.length === 0;
  at("reveal").hidden = isOffline || isOver || state.answered === 0;
  hideResult();
  if (!isOver) ask();
  else if (!isOffline) await showResult();
  else draw({ sentence: "Thank you.", lines: [], steps: [["Export the answers. This command imports them:", page.take]] }, "");
}

function give(answer) {
  if (state === null || state.upcoming.length === 0) return;
  once(async () => {
    const { image, content, phase } = state.upcoming[0];
    const added = { image, content, phase, ...answer };
    const next = await source.save([added], []);
    if (!next.is_late) answers = [...answers, added];
    await show(next);
    if (next.is_late) trouble("Another page answered that image before. Its answer stays.");
  });
}

function undo() {
  if (answers.length === 0) return;
  once(async () => {
    const last = answers.at(-1);
    const next = await source.save([], [last]);
    answers = answers.filter((one) => one !== last);
    await show(next);
  });
}

function draw({ sentence, lines, steps }, advice) {
  at("verdict").textContent = sentence;
  at("advice").textContent = advice;
  at("lines").replaceChildren(...lines.map((line) => element("li", line)));
  at("steps").replaceChildren(...steps.flatMap(([text, command]) => [element("p", text), element("pre", command)]));
  at("result").hidden = false;
}

async function showResult() {
  draw(await send("result"), "All answers are saved. To stop, end the command with Ctrl-C and close this page.");
  at("reveal").setAttribute("aria-expanded", "true");
  at("reveal").textContent = "Hide the result";
}

function hideResult() {
  at("result").hidden = true;
  at("reveal").setAttribute("aria-expanded", "false");
  at("reveal").textContent = "Show the result so far";
}

at("reveal").addEventListener("click", () => (at("result").hidden ? once(showResult) : hideResult()));
at("export").addEventListener("click", () => {
  const text = JSON.stringify(asDocument(answers), null, 1);
  const link = element("a");
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
  const found = [...at("classes").options].find((one) => one.value.toLowerCase() === wanted);
  if (found) give({ answer: "class", class: found.dataset.name });
  else at("search").setCustomValidity("No class has this name. Choose a class of the list.");
  at("search").reportValidity();
});
at("search")?.addEventListener("input", () => at("search").setCustomValidity(""));
at("search")?.addEventListener("keydown", (event) => {
  if (event.key === "Escape") at("search").blur();
});

addEventListener("keydown", (event) => {
  if (state === null || !isPlain(event)) return;
  const options = at("options").querySelectorAll("button");
  const acts = {
    0: () => at("none").click(),
    c: () => at("unsure").click(),
    "/": () => at("search")?.focus(),
    Backspace: undo,
  };
  const act = options[Number(event.key) - 1] ? () => options[Number(event.key) - 1].click() : acts[event.key];
  if (act && (!at("asking").hidden || event.key === "Backspace")) {
    event.preventDefault();
    act();
  }
});

once(async () => show(source.load()));
