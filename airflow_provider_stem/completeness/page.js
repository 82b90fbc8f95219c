
"use strict";
(() => {
  const NONE = 0, COMPLETE = 1, LATE = 2, MISSING = 3, IDLE = 4;
  const STATUSES = ["no row", "complete", "late", "missing", "not expected"];
  const ROW = 18, HEAD = 76, BARS = 34, DAY = 86400000;
  const FONT = "12px system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
  const element = (id) => document.getElementById(id);
  const canvas = element("canvas"), map = element("map"), extent = element("extent"), tip = element("tip");
  const pen = canvas.getContext("2d");
  const number = new Intl.NumberFormat("en-US");

  let data, shown = [], chosen = null, pointer = null, waiting = false;
  let labels = 0, width = 0, height = 0, cell = 0, colours = {}, hatch = null, perDay = [];

  async function unpack(text) {
    const packed = atob(text);
    const bytes = new Uint8Array(packed.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = packed.charCodeAt(i);
    const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(inflated).arrayBuffer();
    const length = new DataView(buffer).getUint32(0, true);
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    const cells = new Uint8Array(buffer, 4 + length);
    // The first line of each site.
    const begins = new Uint32Array(head.sites.length);
    for (let site = 0, line = 0; site < begins.length; site++) {
      begins[site] = line;
      line += head.lines[site].length;
    }
    return { ...head, cells, begins, sought: head.sites.map((id) => id.toLowerCase()) };
  }

  // Return the lines of a site that pass the filter, as [kind, offset of the line in cells].
  function linesOf(site) {
    const kind = element("kind").value;
    const lines = [];
    data.lines[site].forEach((of, i) => {
      if (kind === "" || data.kinds[of][0] === kind) lines.push([of, (data.begins[site] + i) * data.days * 4]);
    });
    return lines;
  }

  // Return the worst status of a cell's lines, and their sums.
  function sum(lines, day) {
    let status = NONE, expected = 0, missing = 0;
    for (const [, offset] of lines) {
      const at = offset + day * 4;
      const own = data.cells[at];
      if (own === MISSING || status === NONE || (status !== MISSING && own === LATE) || (status === IDLE && own)) {
        status = own;
      }
      expected += data.cells[at + 1];
      missing += Math.max(0, data.cells[at + 1] - data.cells[at + 2]);
    }
    return { status, expected, missing };
  }

  function colourOf({ status, expected, missing }) {
    if (status === COMPLETE) return "complete";
    if (status === LATE) return "late";
    if (status === IDLE) return "idle";
    if (status === NONE) return null;
    const share = expected ? missing / expected : 0;
    return share < 0.1 ? "few" : share <= 0.5 ? "many" : "most";
  }

  function filter() {
    const part = element("site").value.trim().toLowerCase();
    perDay = Array.from({ length: data.days }, () => [0, 0]);
    shown = [];
    for (let site = 0; site < data.sites.length; site++) {
      if (part && !data.sought[site].includes(part)) continue;
      const lines = linesOf(site);
      if (!lines.length) continue;
      let missing = 0, late = 0;
      for (const [, offset] of lines) {
        for (let day = 0, at = offset; day < data.days; day++, at += 4) {
          const absent = Math.max(0, data.cells[at + 1] - data.cells[at + 2]);
          missing += absent;
          late += data.cells[at + 3];
          perDay[day][0] += data.cells[at + 1];
          perDay[day][1] += absent;
        }
      }
      shown.push({ site, lines, missing, late });
    }
    shown.sort((a, b) => b.missing - a.missing || b.late - a.late || a.site - b.site);
    const all = data.sites.length;
    element("count").textContent =
      shown.length === all ? `${number.format(all)} sites` : `${number.format(shown.length)} of ${number.format(all)} sites`;
    choose(null);
    map.scrollTop = 0;
    layOut();
  }

  function layOut() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["page", "ink", "quiet", "rule", "panel", "mark", "complete", "late", "few", "many", "most"]) {
      colours[name] = style.getPropertyValue(`--${name}`).trim();
    }
    const ratio = window.devicePixelRatio || 1;
    hatch = hatching(ratio);
    pen.font = FONT;
    const longest = Math.max(0, ...shown.slice(0, 200).map(({ site }) => pen.measureText(data.sites[site].slice(0, 100)).width));
    labels = Math.round(Math.max(210, Math.min(longest + 32, 320)));
    cell = Math.max(5, Math.min(28, Math.floor((map.parentElement.clientWidth - labels - 32) / data.days)));
    map.style.maxWidth = `${labels + data.days * cell + 32}px`;
    const whole = HEAD + shown.length * ROW + 6;
    extent.style.width = `${labels + data.days * cell + 12}px`;
    extent.style.height = `${whole}px`;
    width = map.clientWidth;
    // Not higher than the visible part, or the sticky canvas would move at the end of the scroll range.
    height = Math.min(whole, map.clientHeight);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    redraw();
  }

  function hatching(ratio) {
    const tile = document.createElement("canvas");
    const size = Math.round(5 * ratio);
    tile.width = tile.height = size;
    const brush = tile.getContext("2d");
    brush.strokeStyle = colours.rule;
    brush.lineWidth = ratio;
    brush.beginPath();
    for (const shift of [-size, 0, size]) {
      brush.moveTo(shift, size);
      brush.lineTo(shift + size, 0);
    }
    brush.stroke();
    const pattern = pen.createPattern(tile, "repeat");
    pattern.setTransform(new DOMMatrix([1 / ratio, 0, 0, 1 / ratio, 0, 0]));
    return pattern;
  }

  function redraw() {
    if (!waiting) {
      waiting = true;
      requestAnimationFrame(() => { waiting = false; draw(); });
    }
  }

  const dateOf = (day) => new Date(Date.parse(data.first) + day * DAY);
  const nameOf = (day) => dateOf(day).toISOString().slice(0, 10);

  function draw() {
    const left = map.scrollLeft, top = map.scrollTop;
    const firstDay = Math.floor(left / cell), lastDay = Math.min(data.days, Math.ceil((left + width - labels) / cell));
    const firstRow = Math.floor(top / ROW), lastRow = Math.min(shown.length, Math.ceil((top + height - HEAD) / ROW));
    const gap = cell > 7 ? 1 : 0;
    const x = (day) => labels + day * cell - left, y = (row) => HEAD + row * ROW - top;
    pen.fillStyle = colours.page;
    pen.fillRect(0, 0, width, height);
    pen.textBaseline = "middle";

    pen.font = FONT;
    for (let row = firstRow; row < lastRow; row++) {
      const { lines, site } = shown[row];
      for (let day = firstDay; day < lastDay; day++) {
        const colour = colourOf(sum(lines, day));
        if (colour === null) continue;
        pen.fillStyle = colour === "idle" ? hatch : colours[colour];
        pen.fillRect(x(day), y(row), cell - gap, ROW - 1);
      }
      // Clear the cells that have scrolled under the labels.
      pen.fillStyle = chosen && chosen.row === row ? colours.panel : colours.page;
      pen.fillRect(0, y(row), labels, ROW);
      pen.fillStyle = colours.ink;
      pen.textAlign = "left";
      pen.fillText(cut(data.sites[site], labels - 24), 12, y(row) + ROW / 2);
    }
    if (chosen) {
      pen.strokeStyle = colours.ink;
      pen.lineWidth = 2;
      pen.strokeRect(x(chosen.day) - 1, y(chosen.row) - 1, cell - gap + 2, ROW + 1);
      pen.fillStyle = colours.page;
      if (x(chosen.day) < labels) pen.fillRect(labels - cell - 1, y(chosen.row) - 2, cell + 1, ROW + 4);
    }

    pen.fillStyle = colours.page;
    pen.fillRect(0, 0, width, HEAD - 1);
    const shares = perDay.map(([expected, missing]) => (expected ? missing / expected : 0));
    const highest = Math.max(...shares);
    for (let day = firstDay; day < lastDay; day++) {
      const bar = highest ? (shares[day] / highest) * BARS : 0;
      pen.fillStyle = colours.few;
      pen.fillRect(x(day), 8 + BARS - bar, cell - gap, bar);
    }
    pen.fillStyle = colours.rule;
    pen.fillRect(labels, 8 + BARS, width - labels, 1);
    days(x, firstDay, lastDay);
    pen.fillStyle = colours.page;
    pen.fillRect(0, 0, labels, HEAD - 1);
    pen.textAlign = "left";
    pen.fillStyle = colours.quiet;
    pen.fillText("Missing each day, these sites", 12, 18);
    pen.fillText(`at most ${percent(highest)}`, 12, 34);
    pen.fillText("Sites, worst first", 12, HEAD - 17);
    pen.fillStyle = colours.rule;
    pen.fillRect(0, HEAD - 2, width, 1);
  }

  // Draw a label for each day, Monday or month, depending on the space.
  function days(x, first, last) {
    const step = cell >= 26 ? "day" : cell * 7 >= 46 ? "week" : "month";
    pen.textAlign = "left";
    let free = -Infinity;
    for (let day = Math.max(0, first - 31); day < last; day++) {
      const date = dateOf(day);
      const begins = step === "day" || day === 0 || (step === "week" ? date.getUTCDay() === 1 : date.getUTCDate() === 1);
      if (!begins || x(day) < free) continue;
      const text = date.toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
      const label = step === "day" && date.getUTCDate() !== 1 && day ? String(date.getUTCDate()) : text;
      pen.fillStyle = colours.rule;
      pen.fillRect(x(day), 8 + BARS, 1, 6);
      pen.fillStyle = colours.quiet;
      pen.fillText(label, x(day) + 1, HEAD - 17);
      free = x(day) + pen.measureText(label).width + 6;
    }
  }

  const percent = (share) => (share > 0 && share < 0.0001 ? "under 0.01 %" : `${+(100 * share).toFixed(2)} %`);

  function cut(text, room) {
    if (text.length < 400 && pen.measureText(text).width <= room) return text;
    const points = Array.from(text.slice(0, 200));
    while (pen.measureText(points.join("") + "…").width > room) points.pop();
    return points.join("") + "…";
  }

  function at(clientX, clientY) {
    const box = canvas.getBoundingClientRect();
    const across = clientX - box.left - labels, down = clientY - box.top - HEAD;
    if (across < 0 || down < 0 || clientX >= box.right || clientY >= box.bottom) return null;
    const day = Math.floor((across + map.scrollLeft) / cell), row = Math.floor((down + map.scrollTop) / ROW);
    return day < data.days && row < shown.length ? { day, row } : null;
  }

  const HEADINGS = ["type", "expected", "received", "missing", "late", "status"];

  function details({ day, row }) {
    return shown[row].lines.map(([of, offset]) => {
      const [status, expected, received, late] = data.cells.subarray(offset + day * 4, offset + day * 4 + 4);
      const [type, resolution] = data.kinds[of];
      const name = `${type}, ${resolution / 60} min`;
      if (status === NONE) return [name, "", "", "", "", STATUSES[NONE]];
      return [name, expected, received, Math.max(0, expected - received), late, STATUSES[status]];
    });
  }

  function append(tag, text, within) {
    const node = document.createElement(tag);
    if (text !== null) node.textContent = text;
    within.append(node);
    return node;
  }

  function choose(where, near) {
    chosen = where;
    tip.hidden = where === null;
    if (where) {
      tip.replaceChildren();
      const heading = append("h2", null, tip);
      append("bdi", data.sites[shown[where.row].site], heading);
      append("p", `${nameOf(where.day)} (UTC)`, tip);
      const table = append("table", null, tip);
      const head = append("tr", null, append("thead", null, table));
      HEADINGS.forEach((text) => append("th", text, head));
      const body = append("tbody", null, table);
      for (const values of details(where)) {
        const line = append("tr", null, body);
        values.forEach((value, i) => append(i ? "td" : "th", value, line));
      }
      const box = tip.getBoundingClientRect();
      const across = near.x + 16 + box.width > window.innerWidth ? near.x - 16 - box.width : near.x + 16;
      const down = Math.min(near.y + 16, window.innerHeight - box.height - 8);
      tip.style.transform = `translate(${Math.max(4, across)}px, ${Math.max(4, down)}px)`;
    }
    redraw();
  }

  function byKey(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Escape") return choose(null);
    if (!(event.key in steps) || !shown.length) return;
    event.preventDefault();
    pointer = null;
    const [across, down] = chosen ? steps[event.key] : [0, 0];
    const from = chosen || { day: Math.ceil(map.scrollLeft / cell), row: Math.ceil(map.scrollTop / ROW) };
    const day = Math.max(0, Math.min(data.days - 1, from.day + across));
    const row = Math.max(0, Math.min(shown.length - 1, from.row + down));
    const keep = (scroll, begin, size, room) => Math.max(begin + size - room, Math.min(scroll, begin));
    map.scrollLeft = keep(map.scrollLeft, day * cell, cell, width - labels);
    map.scrollTop = keep(map.scrollTop, row * ROW, ROW, height - HEAD);
    const box = canvas.getBoundingClientRect();
    choose(
      { day, row },
      { x: box.left + labels + (day + 1) * cell - map.scrollLeft, y: box.top + HEAD + (row + 1) * ROW - map.scrollTop },
    );
    element("announcement").textContent = [
      `${data.sites[shown[row].site]}, ${nameOf(day)} UTC`,
      ...details({ day, row }).map((values) =>
        values.map((value, i) => (i && i < 5 ? (value === "" ? "" : `${HEADINGS[i]} ${value}`) : value)).filter(String).join(", ")),
    ].join("; ");
  }

  function byPointer(event) {
    pointer = { x: event.clientX, y: event.clientY };
    choose(at(pointer.x, pointer.y), pointer);
  }

  function listen() {
    element("filter").addEventListener("submit", (event) => event.preventDefault());
    element("kind").addEventListener("change", filter);
    element("site").addEventListener("input", filter);
    canvas.addEventListener("pointermove", byPointer);
    canvas.addEventListener("pointerdown", byPointer);
    canvas.addEventListener("pointerleave", () => { pointer = null; choose(null); });
    canvas.addEventListener("blur", () => choose(null));
    canvas.addEventListener("keydown", byKey);
    // Scrolling moves other cells under a pointer that does not move.
    map.addEventListener("scroll", () => (pointer ? choose(at(pointer.x, pointer.y), pointer) : redraw()));
    window.addEventListener("resize", layOut);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", layOut);
  }

  async function begin() {
    data = await unpack(element("data").textContent);
    element("data").remove();
    for (const type of new Set(data.kinds.map(([type]) => type))) append("option", type, element("kind")).value = type;
    listen();
    filter();
    canvas.dataset.ready = "";
  }

  begin().catch((error) => {
    map.hidden = true;
    element("trouble").hidden = false;
    element("trouble").textContent =
      `The heat map could not be drawn (${error}). Use a browser from 2023 or later. The table below is complete.`;
  });
})();
