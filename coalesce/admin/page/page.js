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

const marks = new WeakMap();

function replaceIfOther(element, children, mark) {
  if (marks.get(element) === mark) return;
  marks.set(element, mark);
  element.replaceChildren(...children());
}

function field(name, text, loud = false) {
  for (const element of document.querySelectorAll(`[data-field="${name}"]`)) {
    say(element, text);
    element.classList.toggle("loud", loud);
  }
}

// --- charts ----------------------------------------------------------------------------------------------------------

const WIDTH = 300;
const HEIGHT = 72;
const SPANS = [15, 30, 60, 120, 180, 240, 300]; // samples: a young history is not squeezed at the edge of an empty chart

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

let reading = null; // which sample, in all charts: how many before the newest

function read(back) {
  reading = back;
  for (const chart of charts) chart.read();
}

// What a latency is at most, but for one sample in twenty: a single slow second would flatten all the others.
function usually(values) {
  const known = values.filter((value) => value !== null).sort((a, b) => a - b);
  return known.length ? known[Math.floor(0.95 * (known.length - 1))] : 0;
}

class Chart {
  constructor(figure) {
    this.columns = figure.dataset.chart.split(" ");
    this.of = figure.dataset.of ? ` ${figure.dataset.of}` : "";
    this.figure = figure;
    this.svg = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", tabindex: 0 });
    for (const y of [0, HEIGHT / 2, HEIGHT]) this.svg.append(svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y }));
    this.area = svg("path", { class: "area" });
    this.curves = this.columns.map((_, n) => svg("path", { class: n ? "curve second" : "curve" }));
    this.hand = svg("line", { class: "hand", y1: 0, y2: HEIGHT });
    this.svg.append(this.area, ...this.curves, this.hand);
    this.scale = make("span", { class: "scale", "aria-hidden": "true" });
    this.when = make("span", {});
    this.what = make("span", {});
    figure.append(this.scale, this.svg, make("figcaption", { "aria-hidden": "true" }, this.when, this.what));
    this.series = [];
    this.span = SPANS[0];
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      read(Math.round((1 - (event.clientX - box.left) / box.width) * (this.span - 1)));
    });
    this.svg.addEventListener("pointerleave", () => read(null));
    this.svg.addEventListener("blur", () => read(null));
    this.svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: 1, ArrowRight: -1 }[event.key];
      if (step) read(Math.min(Math.max(0, (reading ?? -1) + step), this.length - 1));
      else if (event.key === "Escape") read(null);
      else return;
      event.preventDefault();
    });
  }

  show(history) {
    this.every = history.every_seconds;
    this.length = Math.min(history.samples.length, SPANS.at(-1));
    this.span = SPANS.find((span) => span >= this.length);
    this.series = this.columns.map((column) => {
      const place = history.columns.indexOf(column);
      return history.samples.map((sample) => sample[place]).slice(-this.span);
    });
    this.most = Math.max(0, ...this.series.flat()); // (null counts as 0)
    const usual = this.columns.every((column) => column.endsWith("_us")) ? Math.max(...this.series.map(usually)) : this.most;
    this.top = roundedUp(this.most > 3 * usual ? usual : this.most);
    this.series.forEach((values, n) => this.curves[n].setAttribute("d", this.path(values)));
    this.area.setAttribute("d", this.path(this.series[0], true));
    const text = CHARTED[this.columns[0]][1];
    const beyond = this.most > this.top ? `, at most ${text(this.most)}` : "";
    say(this.scale, this.most > 0 ? brief(text(this.top)) + this.of + beyond : "");
    this.svg.setAttribute("aria-label", `The last ${span(this.every * this.length)}: ` + this.columns.map((column, n) => {
      const [name, text] = CHARTED[column];
      const known = this.series[n].filter((value) => value !== null);
      return known.length ? `${name} now ${text(this.series[n].at(-1))}, at most ${text(Math.max(...known))}` : `no ${name} yet`;
    }).join("; "));
    this.read();
  }

  // The newest sample is at the right edge. Where there is no value, there is no line; a lone one is a dot.
  path(values, closed = false) {
    const step = WIDTH / (this.span - 1);
    const x = (n) => (WIDTH - (values.length - 1 - n) * step).toFixed(1);
    let path = "";
    let begun = null;
    values.forEach((value, n) => {
      if (value !== null) {
        path += `${begun === null ? "M" : "L"}${x(n)} ${(HEIGHT - Math.min(1, value / this.top) * HEIGHT).toFixed(1)}`;
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
    const known = reading !== null && reading >= 0 && reading < this.length;
    this.figure.classList.toggle("reading", known);
    if (!known) {
      say(this.when, `${span(this.every * this.span)} ago`);
      say(this.what, "now");
      return;
    }
    const x = WIDTH - (reading * WIDTH) / (this.span - 1);
    this.hand.setAttribute("x1", x);
    this.hand.setAttribute("x2", x);
    say(this.when, reading ? `${span(reading * this.every)} ago` : "now");
    const values = this.columns.map((column, n) => CHARTED[column][1](this.series[n][this.length - 1 - reading]));
    say(this.what, values.join(" / ")); // in the order of the legend
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
  const made = () => items.map(({ level, text }) => make("p", { class: "wrong-item", "data-level": level }, text));
  replaceIfOther($("wrong"), made, JSON.stringify(items));
}

function showNow(status) {
  const { now, totals, history } = status;
  const { columns, samples } = history;
  const place = columns.indexOf("commands_per_second");
  field("commands_per_second", rate(now.commands_per_second));
  field("totals.commands", count(totals.commands));
  field("most_commands_per_second", samples.length ? rate(Math.max(...samples.map((sample) => sample[place]))) : NONE);
  field("mean_batch", mean(now.mean_batch));
  field("totals.mean_batch", totals.batches ? mean((totals.batches + totals.round_trips_saved) / totals.batches) : NONE);
  field("batches_per_second", rate(now.batches_per_second));
  field("round_trips_saved_per_second", rate(now.round_trips_saved_per_second));
  field("totals.round_trips_saved", count(totals.round_trips_saved));
  field("saved_share", totals.commands ? `${tenths.format((100 * totals.round_trips_saved) / totals.commands)}%` : NONE);
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

const LANE_COLUMNS = {
  sessions: (lane) => count(lane.sessions),
  unsent: (lane) => count(lane.unsent),
  "in flight": (lane) => count(lane.in_flight),
  batch: (lane) => mean(lane.mean_batch),
  "least trip": (lane) => duration(lane.round_trip_us),
  connections: (lane) => count(lane.connections),
  commands: (lane) => count(lane.commands),
};

function laneRow() {
  return make("tr", { role: "row" },
    make("th", { role: "rowheader", scope: "row" }),
    make("td", { role: "cell", class: "lane-state" }),
    make("td", { role: "cell", class: "identity" }),
    ...Object.keys(LANE_COLUMNS).map((name) => make("td", { role: "cell", class: "number", "data-label": name })),
  );
}

const whyRow = () => make("tr", { role: "row", class: "why" }, make("td", { role: "cell", colspan: 10 }));

// A lane in a row; why it is failing, in one of its own below all that say the same. Rows stay where they are, and so
// does a text being marked.
function showLanes(lanes) {
  const why = (lane) => (lane === undefined || lane.why === null ? "" : lane.why);
  const rank = (lane) => (lane.state === "failing" ? 0 : 1);
  const sorted = [...lanes].sort((a, b) => rank(a) - rank(b) || why(a).localeCompare(why(b)));
  const rows = sorted.flatMap((lane, n) => (why(lane) && why(lane) !== why(sorted[n + 1]) ? [lane, why(lane)] : [lane]));
  const body = $("lanes").tBodies[0];
  const made = () => rows.map((row) => (typeof row === "string" ? whyRow() : laneRow()));
  replaceIfOther(body, made, rows.map((row) => (typeof row === "string" ? "w" : "l")).join(""));
  rows.forEach((row, n) => {
    const { cells, classList } = body.rows[n];
    if (typeof row === "string") {
      say(cells[0], row);
      return;
    }
    classList.toggle("explained", why(row) !== "");
    cells[1].dataset.level = LANE_LEVELS[row.state];
    const name = row.kind === "large" ? `${row.lane} (large)` : row.lane;
    const identity = `${row.user ?? "no user"}, db ${row.database}, RESP${row.protocol}`;
    const figures = Object.values(LANE_COLUMNS).map((text) => text(row));
    [name, row.state, identity, ...figures].forEach((text, place) => say(cells[place], text));
  });
  $("scroll").hidden = lanes.length === 0;
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
  replaceIfOther($("totals"), () => pairs(entries), JSON.stringify(entries));
}

function showRest(status) {
  const { coalesce, upstream, listen } = status;
  say($("version"), coalesce.version);
  say($("up"), `up ${span(coalesce.uptime_seconds)}`);
  say($("listen"), listen.join(", "));
  const tls = upstream.tls ? ", TLS" : "";
  say($("upstream"), `→ ${upstream.address} (${upstream.software ?? "not reached yet"}${tls})`);
  const commit = coalesce.commit ? ` (${coalesce.commit.slice(0, 12)})` : "";
  say($("about"), `coalesce ${coalesce.version}${commit}, Python ${coalesce.python}, process ${coalesce.pid}`);
  const settings = Object.entries(status.settings).map(([name, value]) => [name, flag(value)]);
  replaceIfOther($("settings"), () => pairs(settings), JSON.stringify(settings));
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
  const serving = `${rate(status.now.commands_per_second)} commands a second`;
  document.title = `${trouble ? "trouble" : status.state === "serving" ? serving : status.state} – coalesce`;
}

// --- asking ----------------------------------------------------------------------------------------------------------

let answered = null; // when it last did
let timer = null;

async function ask() {
  let silence = "coalesce does not answer";
  let answer = null;
  try {
    const response = await fetch("status", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
    if (!response.ok) throw new TypeError(`HTTP ${response.status}`);
    answer = await response.json();
    silence = null;
  } catch (problem) {
    if (problem instanceof SyntaxError) silence = "What answers here is not coalesce";
  }
  if (answer !== null) {
    try {
      show(answer);
      answered = new Date();
    } catch {
      silence = "What coalesce answers can't be shown: another version's? Reload this page";
    }
  }
  document.body.classList.toggle("silent", silence !== null);
  if (silence !== null) {
    showState("error", "no answer");
    const since = answered ? `. The figures are from ${answered.toLocaleTimeString("en-GB")}` : "";
    showWrong([{ level: "error", text: `${silence}${since}.` }]);
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
