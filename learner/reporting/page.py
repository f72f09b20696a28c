"""The frame of the report: one HTML file with its style and its few lines of script inside."""

from html import escape

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #fff; --ink: #1f2328; --faded: #62676f; --line: #e3e4e0;
  --c1: #2563a8; --c2: #c2500c; --c3: #1b7f4f; --c4: #8e3bb0; --c5: #a87800; --c6: #8b929c; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1c2024; --ink: #e6e8ea; --faded: #9aa1a9;
  --line: #30353b; --c1: #76b0ee; --c2: #f29a63; --c3: #6fcb98; --c4: #cf97e6; --c5: #dfba55; --c6: #6b737d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5; overflow-wrap: break-word;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 18px 60px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .6rem; color: var(--faded); font-weight: 600; }
h4 { font-size: .92rem; margin: 0; font-weight: 600; }
p { margin: .3rem 0; } .lead, .unit, nav { color: var(--faded); } .unit { font-weight: 400; font-size: .85em; }
a { color: var(--c1); } nav a { margin-right: 1rem; }
.tiles, .charts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 150px), 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.tile, .chart, .shares, .table { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; margin: 0; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--faded); font-size: .85rem; }
.shares { margin-bottom: 12px; } .table { overflow-x: auto; }
.key { display: inline-block; margin: 0 .9rem 0 0; font-size: .82rem; color: var(--faded); white-space: nowrap; }
.key b { color: var(--ink); font-variant-numeric: tabular-nums; font-weight: 600; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .35em; }
.bar { display: flex; height: 22px; border-radius: 5px; overflow: hidden; margin: 8px 0; } .bar i { min-width: 1px; }
svg { display: block; width: 100%; height: auto; touch-action: pan-y; }
svg text { font-size: 11px; fill: var(--faded); } svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .raw { opacity: .28; stroke-width: 1; }
.grid { stroke: var(--line); } .cursor { stroke: var(--faded); opacity: .5; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .45rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; } thead th { color: var(--faded); font-size: .85rem; }
tbody th { font-weight: 600; } tbody tr:last-child > * { border-bottom: 0; }
td small { color: var(--faded); display: block; } td meter { width: 5.5rem; display: block; margin-left: auto; }
.pair { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  margin: 0 0 16px; }
.pair figure { margin: 0; } .pair figcaption { font-size: .82rem; color: var(--faded); margin-bottom: 3px; }
.pair img { width: 100%; height: auto; border-radius: 8px; border: 1px solid var(--line); display: block; }
@media (max-width: 560px) { th, td { padding: .4rem .3rem; font-size: .88rem; white-space: normal; }
  td meter { width: 3.6rem; }
  .pair figure { overflow-x: auto; } .pair img { width: 200%; max-width: none; }
  .pair figcaption { position: sticky; left: 0; } .pair figcaption::after { content: " · swipe to the answer"; } }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--faded); margin-bottom: .6rem; }
""" + "".join(
    f".c{n} {{ background: var(--c{n}); fill: var(--c{n}); }} .s{n} {{ stroke: var(--c{n}); }}\n" for n in range(1, 7)
)

SCRIPT = """
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg"), cursor = svg.querySelector(".cursor");
  const series = JSON.parse(chart.dataset.series), values = chart.querySelectorAll("[data-value]");
  const [low, high] = [Number(chart.dataset.low), Number(chart.dataset.high)];
  const latest = [...values].map(v => v.textContent);
  const nearest = (points, x) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * WIDTH;
    const step = low + (Math.min(Math.max(at, LEFT), WIDTH - RIGHT) - LEFT) / (WIDTH - LEFT - RIGHT) * (high - low);
    const found = series.map(each => nearest(each.points, step));
    const first = nearest(found, step)[0], x = LEFT + (first - low) / (high - low) * (WIDTH - LEFT - RIGHT);
    cursor.setAttribute("x1", x); cursor.setAttribute("x2", x);
    values.forEach((value, i) => { value.textContent = `${Number(found[i][1].toPrecision(3))} @ ${found[i][0]}`; });
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("x1", -9); cursor.setAttribute("x2", -9);
    values.forEach((value, i) => { value.textContent = latest[i]; });
  });
}
"""


def page(title: str, body: str, plot: tuple[int, int, int]) -> str:
    """A whole document, which a policy keeps off the network. `plot` is (width, left, right) of the charts' viewBox."""
    names = dict(zip(("WIDTH", "LEFT", "RIGHT"), plot, strict=True))
    constants = "".join(f"const {name} = {value};" for name, value in names.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main><script>{constants}{SCRIPT}</script></body></html>\n"
    )
