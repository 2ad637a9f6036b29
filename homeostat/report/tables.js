// Tables of comparison.html: sorted by a click or a key on a column's head; arms can be hidden.
"use strict";
(() => {
  // The first number of a cell, or its text; what is missing goes last, whichever way.
  function key(row, column) {
    const text = row.cells[column].textContent.trim();
    const number = text.match(/^[^\d+-]*([+-]?\d+(?:\.\d+)?)/);
    return text === "—" ? null : number ? Number(number[1]) : text.toLowerCase();
  }

  function compare(one, other, sign) {
    if (one === null || other === null) return (one === null) - (other === null);
    if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
    return sign * (typeof one === "number" ? one - other : one.localeCompare(other));
  }

  function sortBy(table, head) {
    const heads = [...table.rows[0].cells];
    const rising = head.getAttribute("aria-sort") !== "ascending";
    for (const one of heads) one.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const column = heads.indexOf(head);
    const sorted = [...table.rows].slice(1)
      .sort((a, b) => compare(key(a, column), key(b, column), rising ? 1 : -1));
    table.tBodies[0].append(...sorted);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sortBy(table, head));
      head.setAttribute("aria-sort", "none");
      head.append(button);
    }
  }

  const rows = [...document.querySelectorAll("tr[data-arm]")];
  const chooser = document.getElementById("arms");
  for (const arm of new Set(rows.map((row) => row.dataset.arm))) {
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.addEventListener("change", () => {
      for (const row of rows) if (row.dataset.arm === arm) row.hidden = !box.checked;
    });
    const label = document.createElement("label");
    label.append(box, ` ${arm}`);
    chooser.append(label);
  }
  chooser.hidden = rows.length === 0;
})();
