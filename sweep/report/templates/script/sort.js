// Sorting is a convenience: without it a table stands in the order of its sources.
document.querySelectorAll("table.sortable").forEach(function (table) {
  var heads = Array.from(table.tHead.rows[0].cells);
  function value(row, i) { return row.cells[i].dataset.value ?? row.cells[i].textContent; }
  function isGap(row, i) { return ["", "\u2013"].includes(value(row, i)); }
  function compare(a, b, i) {
    var x = value(a, i), y = value(b, i);
    return isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
  }
  heads.forEach(function (head, i) {
    var button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", function () {
      var sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      var rows = Array.from(table.tBodies[0].rows);
      rows.sort(function (a, b) { return isGap(a, i) - isGap(b, i) || sign * compare(a, b, i); });
      table.tBodies[0].append(...rows);
    });
  });
});
