// Sorting is a convenience: without it a table stands in the order of its sources.
document.querySelectorAll("table.sortable").forEach(function (table) {
  var heads = Array.from(table.tHead.rows[0].cells);
  function compare(a, b, i) {
    var x = a.cells[i].dataset.value, y = b.cells[i].dataset.value;
    if (x === undefined) return a.cells[i].textContent.localeCompare(b.cells[i].textContent);
    return x - y;
  }
  function isGap(row, i) { return row.cells[i].dataset.value === ""; }
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
