
"use strict";
(() => {
  const NONE = 0, COMPLETE = 1, LATE = 2, MISSING = 3, IDLE = 4;
  const STATUSES = ["no row", "complete", "late", "missing", "not expected"];
  const ROW = 18, HEAD = 76, BARS = 34, DAY = 86400000;
  const PAPER = 690; // pixels of A4 and Letter between their margins
  const FONT = "12px system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
  const element = (id) => document.getElementById(id);
  const canvas = element("canvas"), map = element("map"), extent = element("extent"), tip = element("tip");
  const pen = canvas.getContext("2d");
  const number = new Intl.NumberFormat("en-US");
  const form = element("filter"), root = form.dataset.root;
  const FILTERS = ["site", "type", "resolution", "status"];
  // The script cannot change the address of every page: that of a presigned one would lose its signature.
  const part = root === undefined ? "hash" : "search";
  const PRINTED = 120;

  let data, shown = [], chosen = null, pointer = null, waiting = false, page = 0, touched = null;
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
    const labels = head.sites.map((id, site) => (head.names[site] ? `${head.names[site]} (${id})` : id));
    return { ...head, cells, begins, labels, sought: labels.map((label) => label.toLowerCase()) };
  }

  // Return the lines of a site that pass the filter, as [kind, offset of the line in cells].
  function linesOf(site) {
    const type = element("type").value, resolution = element("resolution").value;
    const lines = [];
    data.lines[site].forEach((of, i) => {
      const [own, seconds] = data.kinds[of];
      if ((type && own !== type) || (resolution && String(seconds) !== resolution)) return;
      lines.push([of, (data.begins[site] + i) * data.days * 4]);
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
    const sought = element("site").value.trim().toLowerCase();
    const status = STATUSES.indexOf(element("status").value);
    perDay = Array.from({ length: data.days }, () => [0, 0]);
    shown = [];
    for (let site = 0; site < data.sites.length; site++) {
      if (sought && !data.sought[site].includes(sought)) continue;
      const lines = linesOf(site);
      if (!lines.length || (status >= 0 && !hasDay(lines, status))) continue;
      let expected = 0, received = 0, missing = 0, late = 0;
      for (const [, offset] of lines) {
        for (let day = 0, at = offset; day < data.days; day++, at += 4) {
          const absent = Math.max(0, data.cells[at + 1] - data.cells[at + 2]);
          expected += data.cells[at + 1];
          received += data.cells[at + 2];
          missing += absent;
          late += data.cells[at + 3];
          perDay[day][0] += data.cells[at + 1];
          perDay[day][1] += absent;
        }
      }
      shown.push({ site, lines, expected, received, missing, late });
    }
    shown.sort((a, b) => b.missing - a.missing || b.late - a.late || a.site - b.site);
    const all = data.sites.length;
    element("count").textContent =
      shown.length === all ? `${number.format(all)} sites` : `${number.format(shown.length)} of ${number.format(all)} sites`;
    choose(null);
    map.scrollTop = 0;
    page = 0;
    list();
    layOut();
  }

  function hasDay(lines, status) {
    for (let day = 0; day < data.days; day++) if (sum(lines, day).status === status) return true;
    return false;
  }

  // Keep the filters in the address, so that the view can be sent.
  function remember() {
    const query = new URLSearchParams(part === "search" ? location.search : "");
    for (const name of FILTERS) {
      if (element(name).value) query.set(name, element(name).value);
      else query.delete(name);
    }
    history.replaceState(null, "", part === "search" ? `?${query}` : `#${query}`);
    if (root !== undefined) element("address").href = location.href;
  }

  function recall() {
    const query = new URLSearchParams(location[part].slice(1));
    for (const name of FILTERS) {
      element(name).value = query.get(name) || "";
      // A select has no other values than those of its options.
      if (element(name).selectedIndex < 0) element(name).value = "";
    }
    filter();
    if (root !== undefined) element("address").href = location.href;
  }

  // Show one page of the table of sites.
  function list() {
    const rows = Number(element("rows").value) || Math.max(1, shown.length);
    const pages = Math.max(1, Math.ceil(shown.length / rows));
    page = Math.max(0, Math.min(page, pages - 1));
    const body = document.createElement("tbody");
    for (const one of shown.slice(page * rows, (page + 1) * rows)) {
      const line = append("tr", null, body), head = append("th", null, line);
      head.scope = "row";
      const name = append("bdi", null, head);
      if (root === undefined) name.textContent = data.labels[one.site];
      else append("a", data.labels[one.site], name).href = addressOf(one.site);
      let days = 0;
      for (let day = 0; day < data.days; day++) days += sum(one.lines, day).missing > 0;
      const share = one.expected ? one.missing / one.expected : 0;
      for (const value of [one.expected, one.received, one.missing, percent(share), one.late, days]) {
        append("td", typeof value === "number" ? number.format(value) : value, line);
      }
    }
    if (!shown.length) append("td", "No site passes the filters.", append("tr", null, body)).colSpan = 7;
    element("worst").tBodies[0].replaceWith(body);
    const last = Math.min(shown.length, (page + 1) * rows);
    element("place").textContent = shown.length
      ? `${number.format(page * rows + 1)} to ${number.format(last)} of ${number.format(shown.length)}` : "";
    element("before").disabled = page === 0;
    element("after").disabled = page === pages - 1;
    element("paging").hidden = false;
  }

  function addressOf(site, day) {
    const own = `site_id=${encodeURIComponent(data.sites[site])}`;
    if (day !== undefined) return `${root}/completeness/day?${own}&day=${nameOf(day)}`;
    return `${root}/completeness/site?${own}&first_day=${nameOf(0)}&last_day=${nameOf(data.days - 1)}`;
  }

  function open(where) {
    if (root !== undefined && where) location.assign(addressOf(shown[where.row].site, where.day));
  }

  function layOut() {
    const probe = append("i", null, map);
    for (const name of ["page", "ink", "quiet", "rule", "panel", "mark", "complete", "late", "few", "many", "most"]) {
      probe.style.color = `var(--${name})`;
      colours[name] = getComputedStyle(probe).color;
    }
    probe.remove();
    const ratio = window.devicePixelRatio || 1;
    hatch = hatching(ratio);
    pen.font = FONT;
    const longest = Math.max(0, ...shown.slice(0, 200).map(({ site }) => pen.measureText(data.labels[site].slice(0, 100)).width));
    const room = map.parentElement.clientWidth;
    labels = Math.round(Math.max(Math.min(210, room / 2), Math.min(longest + 32, 320, room / 2)));
    cell = Math.max(5, Math.min(28, Math.floor((room - labels - 32) / data.days)));
    map.style.maxWidth = `${labels + data.days * cell + 32}px`;
    const whole = HEAD + shown.length * ROW + 6;
    extent.style.width = `${labels + data.days * cell + 12}px`;
    extent.style.height = `${whole}px`;
    width = map.clientWidth;
    // Not higher than the visible part, or the sticky canvas would move at the end of the scroll range.
    height = Math.min(whole, map.clientHeight);
    size(ratio);
    redraw();
  }

  function size(ratio) {
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  // Draw for paper: light, without scrolling, and with a note on what has no place.
  function print() {
    choose(null);
    document.documentElement.dataset.print = "";
    layOut();
    map.scrollTo(0, 0);
    const rows = Math.min(shown.length, PRINTED);
    labels = Math.min(labels, 240);
    cell = Math.max(2, Math.min(28, Math.floor((PAPER - labels) / data.days)));
    const days = Math.min(data.days, Math.floor((PAPER - labels) / cell));
    width = labels + days * cell;
    height = HEAD + rows * ROW;
    for (const box of [map, extent]) box.style.maxWidth = box.style.width = `${width}px`;
    extent.style.height = `${height}px`;
    size(2);
    draw();
    const parts = [`the heat map has ${number.format(rows)} of the ${number.format(shown.length)} sites that the filters show, the worst`];
    if (days < data.days) parts.push(`${days} of ${data.days} days, from the first`);
    parts.push(`the table has the sites ${element("place").textContent || "0 of 0"}`);
    const left = data.sites.length - shown.length;
    if (left) parts.push(`the filters leave out ${number.format(left)} sites`);
    element("printed").textContent = `On paper ${parts.join("; ")}.`;
  }

  // What is drawn for paper stays until it is printed.
  function fit() {
    if (!("print" in document.documentElement.dataset)) layOut();
  }

  function printed() {
    delete document.documentElement.dataset.print;
    map.style.width = extent.style.maxWidth = "";
    layOut();
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
      pen.fillText(cut(data.labels[site], labels - 24), 12, y(row) + ROW / 2);
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
    pen.fillText(cut("Missing each day, these sites", labels - 16), 12, 18);
    pen.fillText(cut(`at most ${percent(highest)}`, labels - 16), 12, 34);
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
    element("announcement").textContent = "";
    if (where) {
      tip.replaceChildren();
      const heading = append("h2", null, tip);
      append("bdi", data.labels[shown[where.row].site], heading);
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
    if (event.key === "Enter") return open(chosen);
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
      `${data.labels[shown[row].site]}, ${nameOf(day)} UTC`,
      ...details({ day, row }).map((values) =>
        values.map((value, i) => (i && i < 5 ? (value === "" ? "" : `${HEADINGS[i]} ${value}`) : value)).filter(String).join(", ")),
    ].join("; ");
  }

  function byPointer(event) {
    pointer = { x: event.clientX, y: event.clientY };
    choose(at(pointer.x, pointer.y), pointer);
  }

  // The first touch of a cell shows it, the second opens it.
  function byClick(event) {
    const where = at(event.clientX, event.clientY), before = touched;
    touched = where && `${where.row} ${where.day}`;
    if (event.pointerType !== "touch" || touched === before) open(where);
  }

  function listen() {
    form.addEventListener("submit", (event) => { if (root === undefined) event.preventDefault(); });
    for (const name of FILTERS) element(name).addEventListener("input", () => { filter(); remember(); });
    window.addEventListener("hashchange", recall);
    element("paging").addEventListener("submit", (event) => event.preventDefault());
    for (const [name, step] of [["before", -1], ["after", 1]]) {
      element(name).addEventListener("click", () => { page += step; list(); });
    }
    element("rows").addEventListener("input", list);
    canvas.addEventListener("click", byClick);
    canvas.addEventListener("pointermove", byPointer);
    canvas.addEventListener("pointerdown", byPointer);
    canvas.addEventListener("pointerleave", () => { pointer = null; choose(null); });
    canvas.addEventListener("blur", () => choose(null));
    canvas.addEventListener("keydown", byKey);
    // Scrolling moves other cells under a pointer that does not move.
    map.addEventListener("scroll", () => (pointer ? choose(at(pointer.x, pointer.y), pointer) : redraw()));
    window.addEventListener("resize", fit);
    window.addEventListener("beforeprint", print);
    window.addEventListener("afterprint", printed);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", fit);
    new MutationObserver(fit).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }

  async function begin() {
    data = await unpack(element("data").textContent);
    element("data").remove();
    for (const type of new Set(data.kinds.map(([type]) => type))) append("option", type, element("type")).value = type;
    for (const seconds of [...new Set(data.kinds.map(([, seconds]) => seconds))].sort((a, b) => a - b)) {
      append("option", `${seconds / 60} min`, element("resolution")).value = seconds;
    }
    listen();
    recall();
    canvas.dataset.ready = "";
  }

  begin().catch((error) => {
    map.hidden = true;
    element("trouble").hidden = false;
    element("trouble").textContent =
      `The heat map could not be drawn (${error}). Use a browser from 2024 or later. The table below lists the worst sites.`;
  });
})();
