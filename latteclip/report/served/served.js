"use strict";
// What pages have in common on which a person answers or changes something.
const page = JSON.parse(document.getElementById("values").textContent);
const at = (id) => document.getElementById(id);
let busy = false;

function element(name, text = "", attributes = {}) {
  const node = document.createElement(name);
  node.textContent = text;
  if (name === "pre") node.tabIndex = 0; // it may scroll
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function button(content, act, attributes = {}) {
  const node = element("button", "", { type: "button", ...attributes });
  node.append(...content);
  node.addEventListener("click", act);
  return node;
}

function trouble(message) {
  at("trouble").textContent = message;
  at("trouble").hidden = !message;
}

// The reply of the server. It saves a change before it replies.
async function send(way, changes) {
  const options = { method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify(changes) };
  let reply;
  try {
    reply = await fetch(way, changes && options);
  } catch {
    throw new Error("The server does not reply. All earlier changes are saved. Start the same command again, and open the address that it prints.");
  }
  const values = await reply.json();
  if (values.error) throw new Error(values.error);
  return values;
}

// One change at a time: a key press while an answer is being saved counts for nothing.
async function once(act) {
  if (busy) return;
  busy = true;
  try {
    trouble("");
    await act();
  } catch (error) {
    trouble(error.message);
  } finally {
    busy = false;
  }
}

// Whether a key is one of the page's, and not of a field or of the browser.
function isPlain(event) {
  const isField = event.target instanceof HTMLInputElement;
  return !(isField || event.ctrlKey || event.altKey || event.metaKey || event.repeat);
}
