"use strict";
// Fills the card of a token. What comes from the data goes into the page as text only, never as markup.
(() => {
  const traces = JSON.parse(document.getElementById("data").textContent);
  const card = document.getElementById("card");
  let shown = null;

  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const number = (value) => (value === null ? "∞" : value.toFixed(3));
  const percent = (value) => (value > 0 && value < 0.00005 ? "< 0.01 %" : `${(100 * value).toFixed(2)} %`);
  const tokensOf = (text) => [...text.querySelectorAll(".token")];
  const tokenAt = (target) => (target instanceof Element ? target.closest(".text .token") : null);

  const measures = (trace, token) => {
    const list = element("dl");
    const add = (name, value, exact) => {
      const shownValue = element("dd", value);
      shownValue.dataset.value = String(exact);
      list.append(element("dt", name), shownValue);
    };
    add("KL(combined ‖ base)", number(token.kl_combined_base), token.kl_combined_base);
    trace.pairs.forEach(([expert, anti], place) => {
      add(`KL(${expert} ‖ ${anti})`, number(token.kl_expert_anti[place]), token.kl_expert_anti[place]);
      add(`cross-entropy(${expert}, ${anti})`, number(token.cross_entropy[place]), token.cross_entropy[place]);
    });
    add("rank in the base", String(token.base_rank), token.base_rank);
    return list;
  };

  const table = (trace, token) => {
    const made = element("table");
    const head = made.createTHead().insertRow();
    for (const name of ["token", ...trace.distributions]) {
      const cell = element("th", name);
      cell.scope = "col";
      head.append(cell);
    }
    const most = trace.distributions.map((_, place) => Math.max(...token.candidates.map((row) => row[place + 2])));
    const body = made.createTBody();
    for (const [id, text, ...probabilities] of token.candidates) {
      const row = body.insertRow();
      const name = element("th");
      name.scope = "row";
      name.append(element("bdi", text, "code"));
      if (id === token.token_id) {
        row.className = "came";
        name.append(" ◂ came");
      }
      row.append(name);
      probabilities.forEach((value, place) => {
        const cell = element("td", percent(value), value === most[place] ? "top" : "");
        cell.dataset.value = String(value);
        const bar = element("span", "", "bar");
        bar.style.width = `${100 * value}%`;
        cell.append(bar);
        row.append(cell);
      });
    }
    return made;
  };

  const fill = (trace, token) => {
    const came = token.candidates.find(([id]) => id === token.token_id);
    const base = token.candidates.reduce((best, row) => (row[2] > best[2] ? row : best));
    const title = element("h4");
    title.id = "card-token";
    title.append(element("bdi", came[1], "code"));
    const told = element("p", token.is_changed ? "Steering changed the choice: the base would take " : "The base's choice is the combination's: ");
    told.append(element("bdi", base[1], "code"));
    card.replaceChildren(title, told, measures(trace, token), table(trace, token));
  };

  const place = (token) => {
    const box = token.getClientRects()[0] ?? token.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    card.style.left = `${Math.max(8, Math.min(box.left, width - card.offsetWidth - 8)) + window.scrollX}px`;
    const below = box.bottom + 6;
    const fits = below + card.offsetHeight <= window.innerHeight || box.top < card.offsetHeight + 6;
    card.style.top = `${(fits ? below : box.top - card.offsetHeight - 6) + window.scrollY}px`;
  };

  const hide = () => {
    if (shown === null) return;
    shown.classList.remove("shown");
    shown = null;
    card.hidden = true;
  };

  const show = (token) => {
    if (token === shown) return;
    hide();
    const text = token.closest(".text");
    const index = tokensOf(text).indexOf(token);
    const trace = traces[Number(text.dataset.text)];
    fill(trace, trace.tokens[index]);
    shown = token;
    token.classList.add("shown");
    card.hidden = false;
    card.scrollTop = 0;
    place(token);
    const chart = text.parentElement.querySelector(".chart");
    const x = chart.dataset.places.split(" ")[index];
    const cursor = chart.querySelector(".cursor");
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
  };

  const focus = (token) => {
    if (!token) return;
    for (const other of tokensOf(token.closest(".text"))) other.tabIndex = -1;
    token.tabIndex = 0;
    token.focus();
  };

  const step = (token, key) => {
    const tokens = tokensOf(token.closest(".text"));
    const index = tokens.indexOf(token);
    const moves = { ArrowRight: index + 1, ArrowDown: index + 1, ArrowLeft: index - 1, ArrowUp: index - 1, Home: 0, End: tokens.length - 1 };
    return key in moves ? tokens[moves[key]] ?? token : null;
  };

  document.addEventListener("pointerover", (event) => {
    const token = tokenAt(event.target);
    if (token) show(token);
    else if (shown && !card.contains(event.target)) {
      // The card of the focused token comes back; it stays as long as the focus does.
      const focused = card.contains(document.activeElement) ? shown : tokenAt(document.activeElement);
      if (focused) show(focused);
      else hide();
    }
  });
  document.addEventListener("focusin", (event) => {
    const token = tokenAt(event.target);
    if (token) show(token);
    else if (!card.contains(event.target)) hide();
  });
  document.addEventListener("click", (event) => {
    const token = tokenAt(event.target);
    if (token) focus(token);
    const chart = event.target instanceof Element ? event.target.closest(".chart") : null;
    if (chart) {
      const box = chart.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
      const distances = chart.dataset.places.split(" ").map((value) => Math.abs(Number(value) - x));
      focus(tokensOf(chart.parentElement.querySelector(".text"))[distances.indexOf(Math.min(...distances))]);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && shown) {
      const token = shown;
      const wasInCard = card.contains(document.activeElement);
      hide();
      if (wasInCard) {
        token.focus();
        hide();
      }
      return;
    }
    const token = tokenAt(event.target);
    if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") {
      show(token);
      card.focus();
      event.preventDefault();
      return;
    }
    const next = step(token, event.key);
    if (next) {
      focus(next);
      event.preventDefault();
    }
  });
})();
