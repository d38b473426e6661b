"use strict";
const values = JSON.parse(document.getElementById("values").textContent);
const $ = (id) => document.getElementById(id);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function trouble(text) { $("trouble").textContent = text; $("trouble").hidden = !text; }

