"""A self-contained HTML page: its style, its tables, and the escaping of everything that a user named."""

import math
from collections.abc import Iterable, Sequence
from html import escape

_CSS = """
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:#1c1f23;background:#fff;
margin:0 auto;padding:24px 28px 64px;max-width:1310px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px}h2{font-size:19px;margin:40px 0 8px;padding-top:14px;
border-top:1px solid #d9dde2}h3{font-size:15px;margin:24px 0 6px}p{max-width:80ch;margin:8px 0}
.term{white-space:nowrap}.quiet{color:#5a626b}
nav{margin:12px 0 20px;font-size:14px}nav a{margin-right:14px}a{color:#1f5fa8}
.warning{background:#fff3cd;border:2px solid #b7791f;padding:10px 14px;margin:14px 0;max-width:none}
.finding{border-left:4px solid #1f5fa8;padding:2px 0 2px 14px;margin:16px 0}
.scroll{overflow-x:auto;margin:10px 0}table{border-collapse:collapse;font-size:13px;
font-variant-numeric:tabular-nums}caption{text-align:left;color:#5a626b;padding:0 0 6px}
th,td{padding:4px 6px;text-align:right;border-bottom:1px solid #e6e9ed;white-space:nowrap}
td.long{white-space:normal;overflow-wrap:anywhere;max-width:70ch}
th{vertical-align:bottom;background:#f6f7f9;white-space:normal;line-height:1.25}
th.name,td.name{text-align:left}tr.own td{background:#eef4fb;font-weight:600}tr.first td{border-top:2px solid #aab2bb}
th.group{text-align:center;border-left:1px solid #d9dde2}th button{font:inherit;color:inherit;background:none;border:0;
padding:0;cursor:pointer;text-align:inherit}th[aria-sort=ascending] button::after{content:" \\25b2"}
th[aria-sort=descending] button::after{content:" \\25bc"}
figure{margin:22px 0}figure img{max-width:100%;height:auto;display:block}
figcaption{font-size:13px;color:#3d444c;max-width:95ch;margin-top:6px}figcaption b{color:#1c1f23}
.matrices{display:grid;grid-template-columns:repeat(auto-fill,minmax(500px,1fr));gap:8px 26px}
dt{font-weight:600;margin-top:8px}dd{margin:0 0 0 18px;max-width:85ch}
@media print{nav{display:none}body{max-width:none;padding:0}figure,tr{break-inside:avoid}}
"""

# Sorting is a convenience: without it the table stands in source order.
_JAVASCRIPT = """
document.querySelectorAll("table.sortable").forEach(function(table){
 var heads=table.tHead.rows[0].cells;
 Array.prototype.forEach.call(heads,function(head,i){
  var button=document.createElement("button");
  while(head.firstChild)button.appendChild(head.firstChild);head.appendChild(button);
  button.addEventListener("click",function(){
   var sign=head.getAttribute("aria-sort")==="descending"?1:-1;
   Array.prototype.forEach.call(heads,function(h){h.removeAttribute("aria-sort")});
   head.setAttribute("aria-sort",sign>0?"ascending":"descending");
   Array.from(table.tBodies[0].rows).sort(function(a,b){
    var x=a.cells[i].dataset.value,y=b.cells[i].dataset.value;
    if(x===undefined)return sign*a.cells[i].textContent.localeCompare(b.cells[i].textContent);
    if(x===""||y==="")return (x==="")-(y==="");
    return sign*(x-y);
   }).forEach(function(row){table.tBodies[0].appendChild(row)});
  });
 });
});
"""

# The page loads nothing: what a domain's name could smuggle in would not be fetched either.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, subtitle: str, warnings: Iterable[str], sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page. sections: (anchor, heading, HTML); title, subtitle, warnings and headings are plain text."""
    banners = "".join(f'<p class="warning"><b>Warning.</b> {escape(text)}</p>' for text in warnings)
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in sections)
    body = "".join(f'<h2 id="{anchor}">{escape(heading)}</h2>{content}' for anchor, heading, content in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body>"
        f'<h1>{escape(title)}</h1><p class="quiet">{escape(subtitle)}</p>{banners}'
        f"<nav>{links}</nav>{body}<script>{_JAVASCRIPT}</script></body></html>\n"
    )


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    row_classes: Sequence[str] = (),
    num_names: int = 1,
    table_class: str = "",
) -> str:
    """A table of finished cells; header and caption are plain text. `sortable` as its class makes it so."""
    head = "".join(
        f'<th scope="col"{" class=name" if position < num_names else ""}>{prose(title)}</th>'
        for position, title in enumerate(header)
    )
    classes = list(row_classes) or [""] * len(rows)
    body = "".join(
        f'<tr class="{row_class}">{"".join(row)}</tr>' for row, row_class in zip(rows, classes, strict=True)
    )
    return (
        f'<div class="scroll"><table class="{table_class}"><caption>{prose(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def prose(text: str) -> str:
    """Plain text as HTML, with no line break inside of a term."""
    return escape(text).replace("E-RMSE", '<span class="term">E-RMSE</span>')


def name_cell(text: str) -> str:
    """A cell of plain text."""
    return f'<td class="name">{escape(text)}</td>'


def number_cell(value: float, digits: int = 3, *, bold: bool = False) -> str:
    """A number's cell, which sorts by the whole number and shows `digits` of it."""
    text = f"<b>{number(value, digits)}</b>" if bold else number(value, digits)
    return f'<td data-value="{value if math.isfinite(value) else ""}">{text}</td>'


def number(value: float, digits: int = 3) -> str:
    """Fixed digits; a dash where there is no number."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"
