"use strict";
(() => {
  // Sorting: a click on a column's title sorts by it, another turns it round, a third restores the order.
  const value = (row, column, numeric) => {
    const cell = row.cells[column];
    if (!numeric) return cell.textContent.trim().toLowerCase();
    const given = cell.dataset.value;
    return given === undefined || given === "" ? NaN : Number(given);
  };
  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b, undefined, { numeric: true });
    return Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : a < b ? -1 : a > b ? 1 : 0;
  };

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    if (original.length < 2) continue;
    const titles = [...table.tHead.rows[0].cells];
    titles.forEach((title, column) => {
      const by = title.dataset.by;
      if (!by) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...title.childNodes);
      title.append(button);
      title.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const now = title.getAttribute("aria-sort");
        const first = by === "number" ? "descending" : "ascending";
        const second = by === "number" ? "ascending" : "descending";
        const next = now === "none" ? first : now === first ? second : "none";
        for (const other of titles) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
        title.setAttribute("aria-sort", next);
        const sign = next === "descending" ? -1 : 1;
        const sorted = [...original];
        if (next !== "none") {
          sorted.sort((a, b) => {
            const x = value(a, column, by === "number"), y = value(b, column, by === "number");
            // What has no number comes last either way round.
            return Number.isNaN(x) || Number.isNaN(y) ? compare(x, y) : sign * compare(x, y);
          });
        }
        body.append(...sorted);
      });
    });
  }

  // Filters: rows that hold all words, of the kinds that are pressed, and only those that lose if that is asked for.
  for (const controls of document.querySelectorAll(".controls")) {
    const rows = [...document.getElementById(controls.dataset.for).tBodies[0].rows];
    const search = controls.querySelector("input[type=search]");
    const kinds = [...controls.querySelectorAll("button[data-kind]")];
    const only = controls.querySelector("input[data-only]");
    const output = controls.querySelector("output");
    const apply = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const shown = kinds.filter((button) => button.getAttribute("aria-pressed") === "true").map((button) => button.dataset.kind);
      let count = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        const fits =
          words.every((word) => text.includes(word)) &&
          (kinds.length === 0 || shown.includes(row.dataset.kind)) &&
          !(only && only.checked && !(only.dataset.only in row.dataset));
        row.hidden = !fits;
        if (fits) count += 1;
      }
      output.textContent = count === rows.length ? "" : `${count} of ${rows.length} shown`;
    };
    for (const button of kinds) {
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
        apply();
      });
    }
    search.addEventListener("input", apply);
    if (only) only.addEventListener("change", apply);
    controls.hidden = false;
    apply();
  }
})();
