// A small plot of the last minutes, drawn as SVG. Time runs to the right and ends now.
//
// `series`: [{ name, kind: "line" | "dots", points: [{ ago, value }] }], the oldest point first.

import { makeSvg } from "./dom.js";

export const SPAN_S = 300;

const WIDTH = 340;
const HEIGHT = 130;
const LEFT = 52;
const RIGHT = 6;
const TOP = 8;
const BOTTOM = 20;
const GAP_S = 10; // a line does not go on over more than this

export function plot({ title, series, format, most = null }) {
  const values = series.flatMap(({ points }) => points.map(({ value }) => value));
  const top = most ?? niceTop(Math.max(0, ...values));
  const x = (ago) => LEFT + (WIDTH - LEFT - RIGHT) * (1 - ago / SPAN_S);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top);
  const svg = makeSvg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": inWords(title, series, format) });
  for (const value of [0, top / 2, top]) {
    svg.append(
      makeSvg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      makeSvg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)),
    );
  }
  for (const [ago, label] of [[SPAN_S, "5 min ago"], [SPAN_S / 2, ""], [0, "now"]]) {
    const anchor = ago === 0 ? "end" : "start";
    svg.append(makeSvg("text", { x: x(ago), y: HEIGHT - 4, "text-anchor": anchor }, label));
  }
  series.forEach(({ kind, points }, i) => {
    const shown = points.filter(({ ago }) => ago <= SPAN_S);
    if (kind === "dots") {
      svg.append(...shown.map(({ ago, value }) => makeSvg("circle", { class: `series-${i}`, cx: x(ago), cy: y(value), r: 2.5 })));
    } else if (shown.length) {
      for (const run of runs(shown)) {
        const line = run.map(({ ago, value }) => `${x(ago).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
        svg.append(makeSvg("polyline", { class: `series-${i}`, points: line }));
      }
    }
  });
  return svg;
}

// Where nobody looked for a while there is no line.
function runs(points) {
  const found = [[]];
  points.forEach((point, i) => {
    if (i && points[i - 1].ago - point.ago > GAP_S) found.push([]);
    found.at(-1).push(point);
  });
  return found;
}

// The next 1, 2 or 5 with zeros.
export function niceTop(value) {
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((factor) => factor * unit >= value) * unit;
}

function inWords(title, series, format) {
  const parts = series.map(({ name, points }) => {
    if (!points.length) return `${name}: nothing yet`;
    const most = Math.max(...points.map(({ value }) => value));
    return `${name}: last ${format(points.at(-1).value)}, at most ${format(most)}`;
  });
  return `${title}, the last 5 minutes. ${parts.join("; ")}`;
}
