"""The style of the page: light and dark, from a phone to a wide screen, and on paper. No font, no image is fetched."""

# Okabe and Ito's colours, which the colour-blind tell apart; in the dark the blues and the black are lighter.
STYLE = """
:root { color-scheme: light dark; --paper:#fff; --ink:#1b1f24; --quiet:#57606a; --rule:#d0d7de; --soft:#f5f7f9;
  --good:#1a6b3c; --bad:#a1431c; --s0:#D55E00; --s1:#0072B2; --s2:#009E73; --s3:#CC79A7; --s4:#E69F00; --s5:#56B4E9;
  --s6:#7a4fa3; --s7:#1b1f24; --faint:#b4bcc4; }
@media (prefers-color-scheme: dark) { :root { --paper:#14171a; --ink:#e6e9ec; --quiet:#a3adb7; --rule:#3a424a;
  --soft:#1c2125; --good:#6fd39a; --bad:#ff9d75; --s0:#ff8a3d; --s1:#4d9de0; --s2:#2fc79b; --s3:#e39cc4; --s4:#f2bd45;
  --s5:#a6dcff; --s6:#bd98e6; --s7:#e6e9ec; --faint:#4d565f; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 78rem; padding: 1.25rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .2rem 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
p, ul, dl { max-width: 46rem; }
p { margin: .5rem 0; }
a { color: inherit; text-underline-offset: .15em; }
.quiet, caption, figcaption, dt { color: var(--quiet); }
.notice { border-left: 4px solid var(--s4); background: var(--soft); padding: .6rem .9rem; margin: 1rem 0;
  max-width: 46rem; }
.skip { position: absolute; left: -100rem; }
.skip:focus { position: static; }
:focus-visible { outline: 3px solid var(--s1); outline-offset: 2px; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1rem; list-style: none; padding: 0; margin: .8rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: .6rem 0; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 6px;
  font: .85rem/1.5 ui-monospace, "Liberation Mono", monospace; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .3rem 0 .6rem; max-width: 46rem; }
th, td { text-align: right; vertical-align: top; padding: .4rem .55rem; border-bottom: 1px solid var(--rule); }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
thead th:first-child { text-align: left; }
.cards th[scope=row] { min-width: 12rem; }
th[scope=row], th[scope=rowgroup] { text-align: left; font-weight: 600; }
th[scope=rowgroup] { background: var(--soft); }
td.reason { text-align: left; color: var(--quiet); }
.value { font-weight: 600; }
.about span, .badge { display: block; }
.value { display: inline-block; }
.interval, .printed, .sd, .p { font-size: .8rem; color: var(--quiet); white-space: nowrap; }
.verdict { font-size: .8rem; font-weight: 600; white-space: nowrap; }
.pass { color: var(--good); }
.differs { color: var(--bad); }
.badge { font-size: .78rem; font-weight: 400; color: var(--quiet); }
tr.published th[scope=row] { font-style: italic; font-weight: 400; }
.best .value { text-decoration: underline; text-decoration-thickness: 2px; text-underline-offset: .2em; }
.scroll { overflow-x: auto; }
figure { margin: 0; }
figure + .cards { margin-top: 1.5rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem 1.5rem; }
figcaption { max-width: 46rem; margin-bottom: .6rem; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; list-style: none; padding: 0;
  margin: .4rem 0 .8rem; max-width: none; font-size: .9rem; }
.legend i { display: inline-block; width: 1.4rem; height: .22rem; margin-right: .4rem; vertical-align: middle; }
svg { display: block; width: 100%; max-width: 30rem; height: auto; overflow: visible; }
svg text { font-size: 11.5px; fill: var(--quiet); font-family: inherit; }
svg .title { font-size: 13.5px; font-weight: 600; fill: var(--ink); }
svg .label, svg .number, svg .as-published, svg .group, svg .aside { paint-order: stroke; stroke: var(--paper);
  stroke-width: 4px; }
svg .label, svg .number { fill: var(--ink); }
svg .as-published { font-style: italic; }
svg .group { font-weight: 600; fill: var(--quiet); }
svg .number { font-variant-numeric: tabular-nums; }
.line { fill: none; stroke: var(--faint); stroke-width: 1.6; }
.line.grid { stroke: var(--rule); stroke-width: .6; }
.line.axis { stroke: var(--quiet); stroke-width: 1; }
.line.chance { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 4 4; }
.line.interval { stroke: var(--ink); stroke-width: 1.8; }
.line.faint { stroke-width: 1.1; }
.line.dashed { stroke-dasharray: 5 3; }
.dot { fill: var(--faint); }
.dot.ours { fill: var(--s1); }
.dot.published { fill: var(--quiet); }
.dot.open { fill: var(--paper); stroke: var(--s1); stroke-width: 1.6; }
.hollow { fill: none; stroke: var(--s0); stroke-width: 1.6; }
@media (max-width: 46rem) {
  .cards, .cards caption, .cards tbody, .cards tr, .cards td, .cards th { display: block; width: 100%; }
  .cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .cards tr { border-bottom: 1px solid var(--rule); padding: .5rem 0; }
  .cards th[scope=row] { min-width: 0; }
  .cards th, .cards td { border: 0; padding: .15rem 0; text-align: left; }
  .cards th[scope=rowgroup] { padding: .35rem .5rem; }
  .cards .cell { display: grid; grid-template-columns: var(--names) var(--values) 1fr;
    column-gap: .6rem; align-items: baseline; }
  .cards .cell::before { content: attr(data-column); color: var(--quiet); font-size: .85rem; }
  .cards .value { text-align: right; justify-self: end; }
  .cards .about { min-width: 0; }
  .cards .about span { display: inline-block; margin-right: .55rem; white-space: normal; }
  .scroll th, .scroll td { padding: .3rem .2rem; font-size: .85rem; }
}
@media print { body { max-width: none; } nav, .skip { display: none; } figure, tr { break-inside: avoid; } }
""" + "".join(
    f".line.s{n} {{ stroke: var(--s{n}); }} .dot.s{n}, i.s{n} {{ fill: var(--s{n}); background: var(--s{n}); }}\n"
    for n in range(8)
)
