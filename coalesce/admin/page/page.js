// The status page. Asks /status once a second and shows what it says; its history is coalesce's, so that a page just
// opened has all of it. Everything is set as text: what an upstream says of itself is never markup.
"use strict";

const EVERY = 1000; // milliseconds from an answer to the next question
const PATIENCE = 3000; // milliseconds that an answer may take
const NONE = "–";

// --- numbers ---------------------------------------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const three = new Intl.NumberFormat("en-US", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 });

const count = (value) => (value === null || value === undefined ? NONE : whole.format(value));
const mean = (value) => (value === null || value === undefined ? NONE : tenths.format(value));
const brief = (text) => text.replace(/\.0+(?!\d)/, ""); // of a round number: the end of a scale
const flag = (value) => (value === null ? NONE : String(value));

function rate(value) {
  if (value === null || value === undefined) return NONE;
  return value > 0 && value < 10 ? tenths.format(value) : whole.format(value);
}

function duration(microseconds) {
  if (microseconds === null || microseconds === undefined) return NONE;
  if (microseconds < 999.5) return `${whole.format(microseconds)} µs`;
  if (microseconds < 999500) return `${three.format(microseconds / 1e3)} ms`;
  return `${tenths.format(microseconds / 1e6)} s`;
}

function bytes(value) {
  if (value === null || value === undefined) return NONE;
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (value >= 1023.5 && power < units.length - 1) {
    value /= 1024;
    power += 1;
  }
  return `${power && value < 99.5 ? three.format(value) : whole.format(value)} ${units[power]}`;
}

// The two largest units that there is something of.
function span(seconds) {
  const of = [[Math.floor(seconds / 86400), "d"], [Math.floor(seconds / 3600) % 24, "h"], [Math.floor(seconds / 60) % 60, "min"], [Math.floor(seconds) % 60, "s"]];
  const begun = of.findIndex(([value]) => value > 0);
  if (begun < 0) return "0 s";
  return of.slice(begun, begun + 2).filter(([value]) => value).map(([value, unit]) => `${whole.format(value)} ${unit}`).join(" ");
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const parts = (counted) => Object.entries(counted).filter(([, value]) => value).map(([name, value]) => `${count(value)} ${name}`).join(", ");

// --- the document ----------------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);

// Only what has changed is touched: a live region would be read out again.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function replaceIfOther(element, children, mark) {
  if (element.dataset.mark === mark) return;
  element.dataset.mark = mark;
  element.replaceChildren(...children);
}

function field(name, text, loud = false) {
  const element = document.querySelector(`[data-field="${name}"]`);
  say(element, text);
  element.classList.toggle("loud", loud);
}

// --- charts ----------------------------------------------------------------------------------------------------------

const WIDTH = 300;
const HEIGHT = 72;
const LONGEST = 300; // samples: five minutes

const CHARTED = {
  commands_per_second: ["commands a second", rate],
  mean_batch: ["commands in a batch", mean],
  round_trips_saved_per_second: ["round trips saved a second", rate],
  round_trip_p50_us: ["round trip", duration],
  queue_wait_p50_us: ["queue wait", duration],
  clients: ["clients", count],
  lanes: ["lanes", count],
  leases_lent: ["leases lent", count],
};

function svg(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// The least of 1, 2, 2.5 and 5 times a power of ten that has room for it.
function roundedUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].find((step) => step * power >= value) * power;
}

class Chart {
  constructor(figure) {
    this.columns = figure.dataset.chart.split(" ");
    this.of = figure.dataset.of ? `${figure.dataset.of}, ` : "";
    this.figure = figure;
    this.svg = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    for (const y of [0, HEIGHT / 2, HEIGHT]) this.svg.append(svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y }));
    this.area = svg("path", { class: "area" });
    this.curves = this.columns.map((_, n) => svg("path", { class: n ? "curve second" : "curve" }));
    this.hand = svg("line", { class: "hand", y1: 0, y2: HEIGHT });
    this.svg.append(this.area, ...this.curves, this.hand);
    this.when = make("span", {});
    this.what = make("span", {});
    figure.append(this.svg, make("figcaption", {}, this.when, this.what));
    this.series = [];
    this.at = null; // where the pointer reads, as a share of the width
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      this.at = (event.clientX - box.left) / box.width;
      this.read();
    });
    this.svg.addEventListener("pointerleave", () => {
      this.at = null;
      this.read();
    });
  }

  show(history) {
    this.every = history.every_seconds;
    this.series = this.columns.map((column) => {
      const place = history.columns.indexOf(column);
      return history.samples.map((sample) => sample[place]).slice(-LONGEST);
    });
    this.most = Math.max(0, ...this.series.flat()); // (null counts as 0)
    this.top = roundedUp(this.most);
    this.series.forEach((values, n) => this.curves[n].setAttribute("d", this.path(values)));
    this.area.setAttribute("d", this.path(this.series[0], true));
    this.svg.setAttribute("aria-label", `The last ${span(this.every * LONGEST)}: ` + this.columns.map((column, n) => {
      const [name, text] = CHARTED[column];
      const known = this.series[n].filter((value) => value !== null);
      return known.length ? `${name} now ${text(this.series[n].at(-1))}, at most ${text(Math.max(...known))}` : `no ${name} yet`;
    }).join("; "));
    this.read();
  }

  // The newest sample is at the right edge. Where there is no value, there is no line; a lone one is a dot.
  path(values, closed = false) {
    const step = WIDTH / (LONGEST - 1);
    const x = (n) => (WIDTH - (values.length - 1 - n) * step).toFixed(1);
    let path = "";
    let begun = null;
    values.forEach((value, n) => {
      if (value !== null) {
        path += `${begun === null ? "M" : "L"}${x(n)} ${(HEIGHT - (value / this.top) * HEIGHT).toFixed(1)}`;
        begun ??= n;
      }
      if (begun !== null && (value === null || n === values.length - 1)) {
        const last = value === null ? n - 1 : n;
        if (closed) path += `L${x(last)} ${HEIGHT}L${x(begun)} ${HEIGHT}Z`;
        else if (last === begun) path += "h0";
        begun = null;
      }
    });
    return path;
  }

  read() {
    const length = Math.max(0, ...this.series.map((values) => values.length));
    const back = this.at === null ? null : Math.round((1 - this.at) * (LONGEST - 1));
    const reading = back !== null && back >= 0 && back < length;
    this.figure.classList.toggle("reading", reading);
    if (!reading) {
      say(this.when, this.every ? `${span(this.every * LONGEST)} ago` : "");
      say(this.what, this.most > 0 ? `${this.of}top ${brief(CHARTED[this.columns[0]][1](this.top))}` : "");
      return;
    }
    const x = WIDTH - (back * WIDTH) / (LONGEST - 1);
    this.hand.setAttribute("x1", x);
    this.hand.setAttribute("x2", x);
    say(this.when, back ? `${span(back * this.every)} ago` : "now");
    say(this.what, this.columns.map((column, n) => {
      const [name, text] = CHARTED[column];
      const value = text(this.series[n][length - 1 - back]);
      return this.columns.length > 1 ? `${name} ${value}` : value;
    }).join(", "));
  }
}

// --- what is shown ---------------------------------------------------------------------------------------------------

const LEVELS = { starting: "notice", serving: "good", paused: "warning", draining: "warning" };
const LANE_LEVELS = { dialling: "notice", ready: "good", failing: "error" };

function showState(level, text) {
  $("state").dataset.level = level;
  say($("state"), text);
}

function showWrong(items) {
  const made = items.map(({ level, text }) => make("p", { class: "wrong-item", "data-level": level }, text));
  replaceIfOther($("wrong"), made, JSON.stringify(items));
}

function showNow(status) {
  const { now, totals } = status;
  field("commands_per_second", rate(now.commands_per_second));
  field("totals.commands", count(totals.commands));
  field("mean_batch", mean(now.mean_batch));
  field("batches_per_second", rate(now.batches_per_second));
  field("round_trips_saved_per_second", rate(now.round_trips_saved_per_second));
  field("saved_share", totals.commands ? `${tenths.format((100 * totals.round_trips_saved) / totals.commands)} %` : "nothing");
  for (const name of ["round_trip_p50_us", "round_trip_p99_us", "queue_wait_p50_us", "queue_wait_p99_us"]) {
    field(name, duration(now[name]));
  }
}

function showConnections({ clients, lanes, leases, totals }) {
  const { limit, memory_bytes: memory, memory_limit_bytes: memoryLimit, ...states } = clients;
  field("clients.all", count(sum(Object.values(states))));
  field("clients.limit", count(limit));
  for (const [name, value] of Object.entries(states)) field(`clients.${name}`, count(value));
  field("clients.memory_bytes", bytes(memory), memory > 0.9 * memoryLimit);

  field("lanes.all", count(lanes.length));
  for (const state of Object.keys(LANE_LEVELS)) {
    const those = lanes.filter((lane) => lane.state === state).length;
    field(`lanes.${state}`, count(those), state === "failing" && those > 0);
  }
  for (const name of ["unsent", "in_flight"]) field(`lanes.${name}`, count(sum(lanes.map((lane) => lane[name]))));
  field("lanes.lost", count(sum(Object.values(totals.lane_losses))));

  const { limit: most, waiting, idle, ...taken } = leases;
  field("leases.taken", count(sum(Object.values(taken))));
  field("leases.limit", count(most));
  for (const [name, value] of Object.entries(taken)) field(`leases.${name}`, count(value));
  field("leases.idle", count(idle));
  field("leases.waiting", count(waiting), waiting > 0 && sum(Object.values(taken)) >= most);
}

function laneRows(lane) {
  const cell = (name, text) => make("td", { role: "cell", class: "number", "data-label": name }, text);
  const identity = `${lane.user ?? "no user"}, database ${lane.database}, RESP${lane.protocol}`;
  const row = make("tr", { role: "row" },
    make("th", { role: "rowheader", scope: "row" }, lane.kind === "large" ? `${lane.lane} (large values)` : lane.lane),
    make("td", { role: "cell", class: "lane-state", "data-level": LANE_LEVELS[lane.state] }, lane.state),
    make("td", { role: "cell", class: "identity" }, identity),
    cell("sessions", count(lane.sessions)),
    cell("unsent", count(lane.unsent)),
    cell("in flight", count(lane.in_flight)),
    cell("mean batch", mean(lane.mean_batch)),
    cell("least trip", duration(lane.round_trip_us)),
    cell("connections", count(lane.connections)),
    cell("commands", count(lane.commands)),
  );
  if (!lane.why) return [row];
  row.classList.add("explained");
  return [row, make("tr", { role: "row", class: "why" }, make("td", { role: "cell", colspan: 10 }, lane.why))];
}

function showLanes(lanes) {
  const failingFirst = [...lanes].sort((a, b) => (b.state === "failing") - (a.state === "failing"));
  replaceIfOther($("lanes").tBodies[0], failingFirst.flatMap(laneRows), JSON.stringify(failingFirst));
  $("lanes").hidden = lanes.length === 0;
  $("no-lanes").hidden = lanes.length > 0;
}

const pairs = (entries) => entries.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text)));

function showTotals(totals) {
  const counted = (by) => (parts(by) ? `${count(sum(Object.values(by)))} (${parts(by)})` : "0");
  const entries = [
    ["commands", count(totals.commands)],
    ["batches", count(totals.batches)],
    ["round trips saved", count(totals.round_trips_saved)],
    ["delivered", count(totals.delivered)],
    ["swallowed, the caller had left", count(totals.swallowed)],
    ["failed with their connection", count(totals.failed)],
    ["refused, never sent", count(totals.refused)],
    ["commands of coalesce's own", count(totals.own_commands)],
    ["clients accepted", count(totals.clients_accepted)],
    ["clients refused", count(totals.clients_refused)],
    ["lane losses", counted(totals.lane_losses)],
    ["dials", counted(totals.dials)],
    ["protocol errors", counted(totals.protocol_errors)],
    ["faults of coalesce's own", count(totals.faults)],
    ["sent to the upstream", bytes(totals.upstream_sent_bytes)],
    ["received from the upstream", bytes(totals.upstream_received_bytes)],
  ];
  replaceIfOther($("totals"), pairs(entries), JSON.stringify(entries));
}

function showRest(status) {
  const { coalesce, upstream, listen } = status;
  say($("listen"), listen.join(", "));
  const tls = upstream.tls ? ", TLS" : "";
  say($("upstream"), `→ ${upstream.address} (${upstream.software ?? "not reached yet"}${tls})`);
  const commit = coalesce.commit ? ` (${coalesce.commit.slice(0, 12)})` : "";
  say($("about"), `coalesce ${coalesce.version}${commit}, Python ${coalesce.python}, process ${coalesce.pid}, up ${span(coalesce.uptime_seconds)}`);
  const settings = Object.entries(status.settings).map(([name, value]) => [name, flag(value)]);
  replaceIfOther($("settings"), pairs(settings), JSON.stringify(settings));
}

const charts = [...document.querySelectorAll("[data-chart]")].map((figure) => new Chart(figure));

function show(status) {
  const trouble = status.state === "serving" && status.wrong.some((item) => item.level === "error");
  showState(trouble ? "error" : LEVELS[status.state], trouble ? "serving, with trouble" : status.state);
  const idle = status.state === "serving" && status.totals.commands === 0;
  const hint = { level: "notice", text: `No command yet. Point an application at ${status.listen.join(" or ")}.` };
  showWrong(idle ? [...status.wrong, hint] : status.wrong);
  showNow(status);
  showConnections(status);
  showLanes(status.lanes);
  showTotals(status.totals);
  showRest(status);
  for (const chart of charts) chart.show(status.history);
  document.title = `${rate(status.now.commands_per_second)} commands a second – coalesce`;
}

// --- asking ----------------------------------------------------------------------------------------------------------

let answered = null; // when it last did
let timer = null;

async function ask() {
  let silence = null;
  try {
    const response = await fetch("status", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    show(await response.json());
    answered = new Date();
  } catch (problem) {
    silence = problem;
  }
  document.body.classList.toggle("silent", silence !== null);
  if (silence !== null) {
    showState("error", "no answer");
    const since = answered ? ` since ${answered.toLocaleTimeString("en-GB")}; the figures are from then` : "";
    showWrong([{ level: "error", text: `coalesce does not answer${since}.` }]);
    document.title = "no answer – coalesce";
  }
  schedule(EVERY);
}

// A page that nobody looks at asks nothing.
function schedule(milliseconds) {
  clearTimeout(timer);
  timer = document.hidden ? null : setTimeout(ask, milliseconds);
}

document.addEventListener("visibilitychange", () => schedule(0));
ask();
