// Tables that scroll can be scrolled with the keyboard, and the search has a name.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".md-typeset__scrollwrap, .highlight pre > code")) table.tabIndex = 0;
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
});
