// The episode browser of report.html. Its data lies in the page; text enters it as text alone.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("episode-data").textContent);
  const root = document.getElementById("browser");
  const arms = [...new Set(data.users.flatMap((user) => Object.keys(user.arms)))];
  const bots = [...new Set([...data.users, ...data.training].map((row) => row.bot))].sort();
  const names = { base: "base", trained: "trained", cool: "base, cooler", prompted: "base, told" };
  const state = {
    kind: data.users.length ? "users" : "training",
    left: arms[0], right: arms.includes("trained") ? "trained" : arms[1] ?? arms[0],
    bot: "", text: "", place: 0,
  };

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const number = (value) => (value === null || value === undefined ? "—" : value.toFixed(2));
  const words = (text) => text.replace("move_", "").replaceAll("_", " ");
  const says = (episode) => episode.turns.map((turn) => turn.text).join("\n").toLowerCase();

  function found(row) {
    if (state.bot && row.bot !== state.bot) return false;
    if (!state.text) return true;
    const episodes = state.kind === "users" ? Object.values(row.arms) : [row];
    return episodes.some((episode) => says(episode).includes(state.text));
  }

  // A bar from zero: sentiment goes from -1 to 1, every other feeling from 0 to 1.
  function bar(kind, name, level) {
    const made = element("i", { class: kind });
    if (level === null || level === undefined) return made;
    const [zero, width] = name === "sentiment" ? [50, 50] : [0, 100];
    made.style.left = `${level < 0 ? zero + width * level : zero}%`;
    made.style.width = `${Math.max(1, width * Math.abs(level))}%`;
    return made;
  }

  function feelings(turn) {
    const list = element("ul", { class: "feelings", "aria-label": "feelings of the user" });
    for (const [name, level] of Object.entries(turn.affect)) {
      const read = turn.perceived?.[name];
      const told = `${name}: true ${number(level)}, read ${number(read)}`;
      list.append(element("li", { title: told },
        element("span", { class: "label", "aria-hidden": "true" }, name),
        element("span", { class: "bars", "aria-hidden": "true" },
          bar("true", name, level), bar("seen", name, read)),
        element("span", { class: "hidden" }, told)));
    }
    return list;
  }

  function shownTurn(turn) {
    const who = turn.move ? `${turn.role} · ${words(turn.move)}` : turn.role;
    const made = element("div", { class: `turn ${turn.role === "assistant" ? "assistant" : "user"}` },
      element("div", { class: "who" }, who),
      element("div", { class: "text" }, turn.text || "(nothing)"));
    if (turn.role === "user" && turn.affect) made.append(feelings(turn));
    if (turn.role === "assistant" && turn.signals) {
      const told = Object.entries(turn.signals).map(([name, value]) => `${words(name)} ${number(value)}`);
      made.append(element("div", { class: "quiet small" }, told.join(" · ")));
    }
    return made;
  }

  function shownEpisode(title, episode) {
    const made = element("article", { class: "episode", "aria-label": title });
    if (!episode) {
      made.append(element("h4", {}, title), element("p", { class: "quiet" }, "not measured"));
      return made;
    }
    const valence = element("span", { class: "quiet" }, ` valence ${number(episode.valence)}`);
    made.append(element("h4", {}, title, valence), ...episode.turns.map(shownTurn));
    return made;
  }

  function choice(key, label, options) {
    const select = element("select", { id: `browser-${key}` });
    for (const [value, text] of options) select.append(element("option", { value }, text));
    select.value = state[key];
    select.addEventListener("change", () => { state[key] = select.value; state.place = 0; show(); });
    return element("label", { for: select.id }, `${label} `, select);
  }

  function button(text, label, step) {
    const made = element("button", { type: "button", "aria-label": label }, text);
    made.addEventListener("click", () => move(step));
    return made;
  }

  const kinds = [["users", "held-out users"], ["training", "training, by update"]]
    .filter(([kind]) => data[kind].length);
  const armOptions = arms.map((arm) => [arm, names[arm] ?? arm]);
  const search = element("input", { type: "search", id: "browser-text", placeholder: "words" });
  search.addEventListener("input", () => {
    state.text = search.value.toLowerCase();
    state.place = 0;
    show();
  });
  const compared = element("span", { class: "compared" },
    choice("left", "left", armOptions), choice("right", "right", armOptions));
  const update = element("input", { type: "range", id: "browser-update", step: 1 });
  const updates = element("label", { for: update.id }, "update ", update);
  update.addEventListener("input", () => {
    const place = rows().findIndex((row) => row.step >= Number(update.value));
    if (place >= 0) { state.place = place; show(); }
  });
  const where = element("p", { role: "status", "aria-live": "polite", class: "where" });
  const stage = element("div", { class: "stage" });
  root.append(
    element("div", { class: "controls", role: "group", "aria-label": "which episode" },
      choice("kind", "show", kinds),
      choice("bot", "user", [["", "all"], ...bots.map((bot) => [bot, words(bot)])]),
      compared, updates,
      element("label", { for: search.id }, "with ", search),
      element("span", { class: "steps" },
        button("‹", "previous episode", -1), button("›", "next episode", 1))),
    where, stage);

  const rows = () => data[state.kind].filter(found);

  function move(step) {
    const count = rows().length;
    if (count) { state.place = Math.min(Math.max(state.place + step, 0), count - 1); show(); }
  }

  function show() {
    const list = rows();
    const row = list[state.place];
    compared.hidden = state.kind !== "users";
    updates.hidden = state.kind !== "training";
    stage.className = state.kind === "users" ? "stage pair" : "stage";
    const taken = data[state.kind].length;
    const all = data.all[state.kind];
    const sampled = taken < all ? ` (${taken.toLocaleString("en")} of ${all.toLocaleString("en")} are in this page)` : "";
    if (!row) {
      where.textContent = `no episode fits${sampled}`;
      stage.replaceChildren();
      return;
    }
    const about = state.kind === "users" ? `seed ${row.seed}` : `update ${row.step}, sample ${row.sample}`;
    where.textContent = `${state.place + 1} of ${list.length}${sampled}: ${words(row.bot)}, ${about}`;
    if (state.kind === "users") {
      const sides = state.left === state.right ? [state.left] : [state.left, state.right];
      stage.replaceChildren(...sides.map((arm) => shownEpisode(names[arm] ?? arm, row.arms[arm])));
      return;
    }
    update.min = list[0].step;
    update.max = list[list.length - 1].step;
    update.value = row.step;
    stage.replaceChildren(shownEpisode(`update ${row.step}`, row));
  }

  root.addEventListener("keydown", (event) => {
    if (["INPUT", "SELECT"].includes(event.target.tagName)) return;
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (event.key in steps) { event.preventDefault(); move(steps[event.key]); }
  });
  show();
})();
