"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, at) => row.cells[at].dataset.value ?? row.cells[at].textContent.trim();
  heads.forEach((head, at) => {
    if (!head.textContent.trim() || head.dataset.fixed !== undefined) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const numbers = [...table.tBodies[0].rows].every((row) => value(row, at) !== "" && !Number.isNaN(Number(value(row, at))));
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : numbers;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a, at), value(b, at)];
        const order = numbers ? Number(x) - Number(y) : x.localeCompare(y);
        return down ? -order : order;
      });
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...rows);
    });
  });
}
