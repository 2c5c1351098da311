"""A table as a page of its own for MLflow's UI, which shows HTML and has no preview of Parquet."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame

_CSS = """
body{font:13px system-ui,sans-serif;margin:8px;color:#1c1f23;background:#fff}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:3px 8px;text-align:right;border-bottom:1px solid #e6e9ed;white-space:nowrap;border-width:0 0 1px}
th{position:sticky;top:0;background:#f6f7f9;cursor:pointer}p{color:#5a626b;margin:0 0 8px}
"""

_JAVASCRIPT = """
var body=document.querySelector("tbody"),last=-1,sign=1;
document.querySelectorAll("thead th").forEach(function(head,i){head.addEventListener("click",function(){
 sign=last===i?-sign:1;last=i;
 Array.from(body.rows).sort(function(a,b){
  var x=a.cells[i].textContent,y=b.cells[i].textContent;
  if(x===""||y==="")return (x==="")-(y==="");
  return sign*(isNaN(x)||isNaN(y)?x.localeCompare(y):x-y);
 }).forEach(function(row){body.appendChild(row)});
})});
"""


def table_page(title: str, table: DataFrame) -> str:
    """A self-contained page of a whole table, its numbers to six digits; a click on a column's head sorts by it."""
    content = table.to_html(index=False, border=0, na_rep="", float_format="{:.6g}".format)  # escapes what users named
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_CSS}</style></head><body>'
        f"<p>{escape(title)}: {len(table)} rows; click a column to sort. The same table for programs: {escape(title)}.parquet</p>"
        f"{content}<script>{_JAVASCRIPT}</script></body></html>\n"
    )
