"use strict";
// Hover, logarithmic axis and smoothing for the line charts. The page is complete without it.
(() => {
  const holder = document.getElementById("plotted");
  if (!holder) return;
  const data = JSON.parse(holder.textContent).charts;
  const W = 400, H = 230, L = 50, R = 10, T = 14, B = 38, NS = "http://www.w3.org/2000/svg";

  const short = (v) => {
    const a = Math.abs(v);
    if (a === 0) return "0";
    if (a < 1e-4 || a >= 1e15) return v.toExponential(2);
    for (const [s, u] of [[1e12, "T"], [1e9, "B"], [1e6, "M"]]) if (a >= s) return +(v / s).toPrecision(3) + u;
    return a >= 1e4 ? +(v / 1e3).toPrecision(4) + "k" : String(+v.toPrecision(4));
  };
  const ticks = (lo, hi, log) => {
    if (log) {
      const out = [];
      for (let k = Math.floor(lo); k <= Math.ceil(hi); k++)
        for (const m of hi - lo > 2.5 ? [1] : [1, 2, 5]) {
          const t = k + Math.log10(m);
          if (t >= lo && t <= hi) out.push(t);
        }
      return out.length > 1 ? out : [lo, hi];
    }
    const raw = (hi - lo) / 4, base = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * base).find((s) => s >= raw * 0.999);
    const out = [];
    for (let i = Math.ceil(lo / step - 1e-9); i <= Math.floor(hi / step + 1e-9); i++) out.push(i * step);
    return out;
  };
  const median = (ys, half) => ys.map((_, i) => {
    const part = ys.slice(Math.max(0, i - half), i + half + 1).sort((a, b) => a - b), m = part.length >> 1;
    return part.length % 2 ? part[m] : (part[m - 1] + part[m]) / 2;
  });
  const draw = (name, attrs, text) => {
    const e = document.createElementNS(NS, name);
    for (const k in attrs) e.setAttribute(k, attrs[k]);
    if (text !== undefined) e.textContent = text;
    return e;
  };

  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const chart = data[svg.dataset.chart];
    if (!chart) continue;
    const show = (v) => (chart.percent ? +(100 * v).toPrecision(3) + " %" : short(v));
    const first = svg.innerHTML, figure = svg.closest("figure");
    const xs = chart.series.flatMap((s) => [s.x[0], s.x[s.x.length - 1]]);
    let x0 = Math.min(...xs), x1 = Math.max(...xs);
    if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
    const px = (x) => L + ((x - x0) / (x1 - x0)) * (W - L - R);
    const state = { log: false, smooth: false };
    const all = chart.series.flatMap((s) => s.y);
    const canLog = !chart.zero && all.every((y) => y > 0) && Math.max(...all) / Math.min(...all) > 3;
    const canSmooth = chart.smooth && chart.series.some((s) => s.y.length >= 24);

    const redraw = () => {
      svg.innerHTML = first;
      if (!state.log && !state.smooth) return;
      for (const e of [...svg.children]) if (!["title", "desc"].includes(e.localName) && !e.classList.contains("mark")) e.remove();
      const f = state.log ? Math.log10 : (v) => v;
      const lines = chart.series.map((s) => (state.smooth ? median(s.y, Math.max(2, Math.floor(s.y.length / 16))) : s.y));
      const ys = lines.flat().concat(chart.levels.map((v) => v[0]).filter((v) => !state.log || v > 0)).map(f);
      let lo = Math.min(...ys), hi = Math.max(...ys);
      const pad = (hi - lo) * 0.05 || 0.5;
      lo -= pad; hi += pad;
      const py = (v) => T + ((hi - v) / (hi - lo)) * (H - T - B);
      const axis = draw("g", { class: "axis" });
      for (const t of ticks(lo, hi, state.log)) {
        axis.append(draw("line", { class: "grid", x1: L, x2: W - R, y1: py(t), y2: py(t) }));
        axis.append(draw("text", { class: "tick", x: L - 6, y: py(t) + 4, "text-anchor": "end" }, show(state.log ? 10 ** t : t)));
      }
      for (const t of ticks(x0, x1, false)) axis.append(draw("text", { class: "tick", x: px(t), y: H - B + 16, "text-anchor": "middle" }, short(t)));
      axis.append(draw("text", { class: "tick", x: W - R, y: H - 4, "text-anchor": "end" }, chart.x_label + (state.log ? " (values on a log axis)" : "")));
      svg.append(axis);
      for (const [v, label] of chart.levels) {
        if (state.log && v <= 0) continue;
        svg.append(draw("line", { class: "level", x1: L, x2: W - R, y1: py(f(v)), y2: py(f(v)) }));
        svg.append(draw("text", { class: "tick level", x: W - R - 2, y: py(f(v)) - 4, "text-anchor": "end" }, label));
      }
      chart.series.forEach((s, i) => {
        const d = lines[i].map((y, k) => (k ? "L" : "M") + px(s.x[k]).toFixed(1) + " " + py(f(y)).toFixed(1)).join("");
        svg.append(draw("path", { class: "line t" + s.tone, d }));
      });
    };

    const tools = document.createElement("div");
    tools.className = "tools";
    for (const [name, can] of [["log", canLog], ["smooth", canSmooth]]) {
      if (!can) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        state[name] = !state[name];
        button.setAttribute("aria-pressed", String(state[name]));
        redraw();
      });
      tools.append(button);
    }
    if (tools.children.length) { figure.append(tools); figure.classList.add("with-tools"); }

    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    figure.append(tip);
    const leave = () => { tip.hidden = true; svg.querySelector(".cursor")?.remove(); };
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * W;
      const want = x0 + ((at - L) / (W - L - R)) * (x1 - x0);
      let near = null;
      for (const s of chart.series) for (const x of s.x) if (near === null || Math.abs(x - want) < Math.abs(near - want)) near = x;
      svg.querySelector(".cursor")?.remove();
      svg.append(draw("line", { class: "cursor", x1: px(near), x2: px(near), y1: T, y2: H - B }));
      const parts = chart.series.map((s) => [s.name, s.y[s.x.indexOf(near)]]).filter((p) => p[1] !== undefined);
      tip.textContent = chart.x_label + " " + short(near) + " · " + parts.map((p) => (chart.series.length > 1 ? p[0] + " " : "") + show(p[1])).join(" · ");
      tip.hidden = false;
      const frame = figure.getBoundingClientRect(), x = (px(near) / W) * box.width + box.left - frame.left;
      tip.style.left = Math.max(0, Math.min(frame.width - tip.offsetWidth, x + 8)) + "px";
      tip.style.top = box.top - frame.top + (T / H) * box.height + 14 + "px";
    });
  }
})();
