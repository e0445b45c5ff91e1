"use strict";
// Everything here comes from models and data files, so it enters the page by textContent alone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 50;
  const byId = (id) => document.getElementById(id);

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function drawBars() {
    const shown = data.metrics.filter((metric) => metric.unit_interval);
    if (!shown.length) return;
    const box = byId("bars").querySelector(".bars");
    for (const metric of shown) {
      const group = make("div", "bar-group");
      group.append(make("h3", "", metric.label));
      for (const name of data.contestants) {
        const summary = (data.scores[name] || {})[metric.name];
        if (!summary || summary.mean === null) continue;
        const percent = 100 * summary.mean;
        const error = 100 * (summary.stderr || 0);
        const bar = make("div", "bar " + name);
        const track = make("div", "track");
        const fill = make("div", "fill");
        fill.style.width = percent + "%";
        track.append(fill);
        if (error > 0) {
          const whisker = make("div", "whisker");
          const low = Math.max(0, percent - error);
          whisker.style.left = low + "%";
          whisker.style.width = Math.min(100, percent + error) - low + "%";
          track.append(whisker);
        }
        bar.append(make("span", "", name), track, make("span", "value", metric.share ? percent.toFixed(1) + " %" : summary.mean.toFixed(3)));
        group.append(bar);
      }
      box.append(group);
    }
    byId("bars").hidden = false;
  }

  function confusionTable(confusion) {
    const table = make("table");
    const head = make("tr");
    head.append(make("th", "corner", "expected ↓ found →"));
    for (const column of confusion.columns) head.append(make("th", "", column));
    const thead = make("thead");
    thead.append(head);
    table.append(thead);
    const body = make("tbody");
    confusion.counts.forEach((counts, row) => {
      const total = counts.reduce((sum, count) => sum + count, 0);
      const line = make("tr");
      line.append(make("th", "", confusion.labels[row]));
      counts.forEach((count, column) => {
        const cell = make("td", count === 0 ? "zero" : row === column ? "hit" : "", String(count));
        if (count) cell.style.backgroundColor = "rgba(var(--heat), " + (0.08 + 0.6 * count / total) + ")";
        line.append(cell);
      });
      body.append(line);
    });
    table.append(body);
    return table;
  }

  function drawConfusions() {
    const section = byId("confusions");
    let field;
    let box;
    for (const confusion of data.confusions) {
      if (confusion.field !== field) {
        field = confusion.field;
        box = make("div", "grids");
        section.append(box);
      }
      const part = make("div", "scroll");
      part.append(make("h3", "", confusion.field + ", " + confusion.contestant), confusionTable(confusion));
      box.append(part);
    }
    section.hidden = !data.confusions.length;
  }

  const systems = new Set(data.samples.flatMap((s) => s.prompt.filter((m) => m.role === "system").map((m) => m.content)));

  function drawTurn(message) {
    if (message.role === "system" && systems.size === 1) {
      const details = make("details", "turn");
      details.append(make("summary", "", "system prompt, the same for every row"), make("div", "", message.content));
      return details;
    }
    const turn = make("div", "turn");
    turn.append(make("b", "", message.role), document.createTextNode(message.content));
    return turn;
  }

  function drawTicks(scores) {
    const list = make("ul", "ticks");
    for (const metric of data.metrics) {
      const score = scores[metric.name];
      if (!score) continue;
      const [value, why] = score;
      let text;
      let kind = "";
      if (value === null) text = "– " + metric.label + " not scored";
      else if (metric.share) {
        kind = value === 1 ? "right" : "wrong";
        text = (value === 1 ? "✓ " : "✗ ") + metric.label;
      } else text = metric.label + " " + value.toFixed(2);
      const item = make("li", kind, text);
      if (why) {
        item.title = why;
        if (kind === "wrong" && metric.field) item.textContent += ": " + why;
      }
      list.append(item);
    }
    return list;
  }

  function drawAnswer(name, text, notes, scores) {
    const box = make("div", "answer " + name);
    const heading = make("h4", "", name);
    if (notes) heading.append(make("span", "", notes));
    const pre = make("pre", "", text);
    pre.tabIndex = 0;
    box.append(heading, pre);
    if (scores) box.append(drawTicks(scores));
    return box;
  }

  function drawSample(sample) {
    const card = make("article", "sample");
    card.tabIndex = -1;
    card.id = "row-" + sample.number;
    const head = make("div", "head");
    const link = make("a", "", "row " + sample.number);
    link.href = "#row-" + sample.number;
    head.append(link, make("span", "", sample.id));
    card.append(head, ...sample.prompt.map(drawTurn));
    const answers = make("div", "answers");
    answers.append(drawAnswer("reference", sample.reference));
    for (const name of data.contestants) {
      const answer = sample.answers[name];
      if (!answer) continue;
      const notes = answer.error ? "no answer" : answer.cut ? "cut off after " + answer.tokens + " tokens" : "";
      answers.append(drawAnswer(name, answer.error || answer.text, notes, sample.scores[name] || {}));
    }
    card.append(answers);
    return card;
  }

  const right = (sample, name, metric) => ((sample.scores[name] || {})[metric] || [null])[0];
  const filters = [{ label: "All rows", keep: () => true }];
  for (const name of [...data.contestants].reverse()) {
    for (const metric of data.metrics.filter((each) => each.share)) {
      if (!(data.scores[name] || {})[metric.name]) continue;
      filters.push({ label: name + " wrong: " + metric.label, keep: (s) => right(s, name, metric.name) === 0 });
    }
    filters.push({ label: name + ": cut off or no answer", keep: (s) => Boolean(s.answers[name] && (s.answers[name].cut || s.answers[name].error)) });
  }

  let kept = data.samples;
  let drawn = 0;
  const list = byId("list");

  function drawMore() {
    for (const sample of kept.slice(drawn, drawn + PAGE)) list.append(drawSample(sample));
    drawn = Math.min(kept.length, drawn + PAGE);
    byId("more").hidden = drawn >= kept.length;
  }

  const haystack = (sample) => (sample.text ??= [sample.id, sample.reference, ...sample.prompt.map((m) => m.content), ...Object.values(sample.answers).map((a) => a.text)].join("\n").toLowerCase());

  function refresh() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const filter = filters[byId("filter").selectedIndex] || filters[0];
    kept = data.samples.filter((sample) => filter.keep(sample) && words.every((word) => haystack(sample).includes(word)));
    byId("count").textContent = kept.length + " of " + data.samples.length + " rows";
    list.replaceChildren();
    drawn = 0;
    drawMore();
  }

  function step(by) {
    const cards = [...list.children];
    const here = cards.indexOf(document.activeElement.closest(".sample"));
    if (here + by >= cards.length && drawn < kept.length) { drawMore(); return step(by); }
    const next = list.children[Math.max(0, Math.min(cards.length - 1, here + by))];
    if (next) { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "start" }); }
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "/") { event.preventDefault(); byId("search").focus(); }
    else if (event.key === "j") step(1);
    else if (event.key === "k") step(-1);
  });

  drawBars();
  drawConfusions();
  if (data.samples.length) {
    for (const filter of filters) byId("filter").append(make("option", "", filter.label));
    byId("search").addEventListener("input", refresh);
    byId("filter").addEventListener("change", refresh);
    byId("more").addEventListener("click", drawMore);
    byId("samples").hidden = false;
    refresh();
  }
})();
