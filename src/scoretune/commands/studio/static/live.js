// Curves, alarms and the log of a run, as the studio sends them.
"use strict";
(() => {
  const home = document.getElementById("curves");
  if (!home || !window.EventSource || !window.uPlot) return;
  const WANTED = {
    metrics: ["reward", "loss", "implicit_accuracy", "implicit_margin", "chain_kl", "grad_norm"],
    evaluations: ["reward.deterministic", "judge.overall", "reader.overall", "chain_kl"],
  };
  const WORDS = {
    "metrics reward": "reward while training", "metrics loss": "loss",
    "metrics implicit_accuracy": "implicit accuracy", "metrics implicit_margin": "implicit margin",
    "metrics chain_kl": "chain KL", "metrics grad_norm": "norm of the gradient",
    "evaluations reward.deterministic": "held-out reward", "evaluations judge.overall": "judge accuracy",
    "evaluations reader.overall": "reader accuracy", "evaluations chain_kl": "held-out chain KL",
  };
  const plots = new Map();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function plotOf(key) {
    if (plots.has(key)) return plots.get(key);
    const frame = document.createElement("div");
    frame.className = "tile plotted";
    const head = document.createElement("h3");
    const last = document.createElement("b");
    head.append(`${WORDS[key]}: `, last);
    const body = document.createElement("div");
    frame.append(head, body);
    home.append(frame);
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false } };
    const width = () => Math.max(200, frame.clientWidth - 26);
    const plot = new uPlot(
      {
        width: width(), height: 170, cursor: { show: false }, legend: { show: false },
        scales: { x: { time: false } },
        axes: [axis, { ...axis, size: 52 }],
        series: [{}, { stroke: colour("--judge"), width: 2, points: { show: key.startsWith("evaluations") } }],
      },
      [[], []],
      body,
    );
    plot.root.setAttribute("aria-hidden", "true");
    new ResizeObserver(() => plot.setSize({ width: width(), height: 170 })).observe(frame);
    const made = { plot, last, xs: [], ys: [] };
    plots.set(key, made);
    return made;
  }

  function add(log, rows) {
    const changed = new Set();
    for (const row of rows) {
      if (log === "metrics") document.getElementById("update").textContent = String(row.update);
      for (const name of WANTED[log] || []) {
        if (typeof row[name] !== "number") continue;
        const one = plotOf(`${log} ${name}`);
        const place = one.xs.findIndex((x) => x >= row.update); // a resumed run does some again
        if (place >= 0) {
          one.xs.length = place;
          one.ys.length = place;
        }
        one.xs.push(row.update);
        one.ys.push(row[name]);
        changed.add(one);
      }
    }
    for (const one of changed) {
      one.plot.setData([one.xs, one.ys]);
      one.last.textContent = one.ys[one.ys.length - 1].toPrecision(3);
    }
  }

  function alarm(rows) {
    const list = document.getElementById("alarms");
    list.querySelector(".note")?.remove();
    for (const row of rows) {
      const item = document.createElement("li");
      item.className = "bad";
      item.textContent = `update ${row.update}: ${row.text ?? row.alarm ?? "alarm"}`;
      list.append(item);
    }
  }

  const source = new EventSource(home.dataset.events);
  source.addEventListener("rows", (event) => {
    const { log, rows } = JSON.parse(event.data);
    if (log === "alarms") alarm(rows);
    else add(log, rows);
  });
  source.addEventListener("text", (event) => {
    const log = document.getElementById("log");
    log.textContent = JSON.parse(event.data);
    log.scrollTop = log.scrollHeight;
  });
  source.addEventListener("state", (event) => {
    const running = JSON.parse(event.data) === "running";
    document.getElementById("stop").disabled = !running;
    const state = document.getElementById("state");
    if (running) state.textContent = "running";
    else if (state.textContent === "running") state.textContent = "ended";
  });
  window.addEventListener("pagehide", () => source.close());
})();
