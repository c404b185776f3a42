"use strict";
// Moves thresholds and the allowed loss, and shows what that does to the test samples. All numbers come
// from the data in the page; without this script the page's figures show the chosen policy.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const samples = data.right.length;
  const gates = data.confidences.length;
  const find = (selector) => document.querySelector(selector);
  const minus = (text) => text.replace("-", "−");
  const percent = (share) => minus((100 * share).toFixed(2)) + " %";
  const points = (drop) => minus((100 * drop + 0).toFixed(2).replace(/^-0\.00$/, "0.00")) + " points";
  const cost = (value) => value.toFixed(Math.abs(value) >= 100 ? 0 : 3) + " " + data.unit;
  const place = ([from, to], value) =>
    to[0] + Math.min(1, Math.max(0, (value - from[0]) / (from[1] - from[0]))) * (to[1] - to[0]);
  const move = (element, attributes) => {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value.toFixed(2));
  };
  const state = new URLSearchParams(location.hash.slice(1));
  const remember = (key, value) => {
    state.set(key, value);
    try { history.replaceState(null, "", "#" + state); } catch { /* a page without an address */ }
  };

  // The allowed loss.
  const target = find("#target");
  const showTarget = () => {
    const { max_accuracy_drop: allowed, policy, best_static: other } = data.targets[target.value];
    const show = (name, text) => { find(`[data-target="${name}"]`).textContent = text; };
    const said = +(100 * allowed).toFixed(6) + " points";
    find("#target-value").textContent = said;
    target.setAttribute("aria-valuetext", said);
    show("stages", policy.stages.join(", then "));
    show("drop", points(policy.accuracy_drop));
    show("chip", cost(policy.energy_uj.chip));
    show("rates", policy.escalation_rates.map(percent).join(", then ") || "nothing");
    show("static", other.stages.join(" and ") + ", " + cost(other.energy_uj.chip));
    show("saving", percent(1 - policy.energy_uj.chip / other.energy_uj.chip));
    const [x, y] = data.places[target.value];
    move(find('#frontier [data-part="target"] circle'), { cx: x, cy: y });
  };
  if (target) {
    const given = data.targets.findIndex((t) => t.max_accuracy_drop === Number(state.get("drop")));
    if (state.has("drop") && given >= 0) target.value = given;
    target.addEventListener("input", () => {
      showTarget();
      remember("drop", data.targets[target.value].max_accuracy_drop);
    });
    find("#targets").hidden = false;
    showTarget();
  }
  if (gates === 0) return;

  // Thresholds: one for each way to part the samples. `confidences[0]` comes as differences.
  let sum = 0;
  const confidences = data.confidences.map((codes, stage) =>
    stage === 0 ? codes.map((difference) => (sum += difference)) : codes);
  const right = Array.from(data.right, Number);
  const weights = data.weights || right.map(() => 1);
  const weight = weights.reduce((sum, each) => sum + each, 0);
  const chosen = data.stages.slice(0, gates).map((stage) => stage.accept_at);
  const distincts = confidences.map((codes) => [...new Set(codes)].sort((a, b) => a - b));
  // Which choice parts the samples as a threshold does.
  const like = (stage, code) => {
    const index = distincts[stage].findIndex((value) => value >= code);
    return index < 0 ? distincts[stage].length : index;
  };
  const choices = distincts.map((distinct, stage) => {
    const between = distinct.slice(1).map((code, i) => distinct[i] + Math.ceil((code - distinct[i]) / 2));
    const all = [distinct[0], ...between, distinct[distinct.length - 1] + 1];
    all[like(stage, chosen[stage])] = chosen[stage];
    return all;
  });
  const sliders = choices.map((_, stage) => find(`#threshold-${stage + 1}`));
  const accept = () => sliders.map((slider, stage) => choices[stage][slider.value]);

  const stageOf = (sample, at, first) => {
    let stage = first;
    while (stage < gates && confidences[stage][sample] < at[stage]) stage += 1;
    return stage;
  };
  const outcome = (at) => {
    const runs = new Array(gates + 1).fill(0);
    let correct = 0;
    for (let sample = 0; sample < samples; sample += 1) {
      const stage = stageOf(sample, at, 0);
      correct += ((right[sample] >> stage) & 1) * weights[sample];
      for (let i = 0; i <= stage; i += 1) runs[i] += weights[sample];
    }
    const mean = (kind) => runs.reduce((sum, n, i) => sum + (n / weight) * data.stages[i][kind], 0);
    return {
      accuracy: correct / weight,
      drop: (data.reference - correct) / weight,
      rates: runs.slice(1).map((n) => n / weight),
      chip: mean("chip"),
      total: mean("total"),
    };
  };
  // Samples come by rising confidence of the first stage, so that its threshold hands on a prefix.
  const curve = (at) => {
    let correct = right.reduce((sum, bits, sample) => sum + (bits & 1) * weights[sample], 0);
    let energy = weight * data.stages[0].chip;
    const step = Math.ceil(samples / 240);
    const line = [[energy, correct]];
    for (let sample = 0; sample < samples; sample += 1) {
      const stage = stageOf(sample, at, 1);
      correct += (((right[sample] >> stage) & 1) - (right[sample] & 1)) * weights[sample];
      for (let i = 1; i <= stage; i += 1) energy += data.stages[i].chip * weights[sample];
      const parts = sample + 1 === samples || confidences[0][sample + 1] > confidences[0][sample];
      if (parts && (sample % step === 0 || sample + 1 === samples)) line.push([energy, correct]);
    }
    const [x, y] = data.plane;
    return line.map(([energy, correct]) =>
      place(x, energy / weight).toFixed(2) + "," + place(y, (100 * correct) / weight).toFixed(2));
  };
  const showGate = (stage, code) => {
    const [from, to] = data.axes[stage];
    const value = code * data.stages[stage].score_scale;
    const x = place([from, to], value);
    const [shade, line, label] = find(`#stage-${stage + 1} [data-part="gate"]`).children;
    move(shade, { width: x - to[0] });
    move(line, { x1: x, x2: x });
    const left = x < to[1] - 170;
    label.setAttribute("text-anchor", left ? "start" : "end");
    move(label, { x: x + (left ? 6 : -6) });
    label.textContent = value > from[1] ? "all are handed on" : "accepted from " + minus(value.toFixed(4));
  };
  const countFirst = (code) => {
    for (const [part, name, wanted] of [["right", "right answers", 1], ["wrong", "wrong answers", 0]]) {
      let [accepted, handedOn] = [0, 0];
      for (let sample = 0; sample < samples; sample += 1) {
        if ((right[sample] & 1) !== wanted) continue;
        if (confidences[0][sample] < code) handedOn += 1; else accepted += 1;
      }
      const text = find(`#stage-1 [data-part="${part}"] text`);
      const number = (n) => n.toLocaleString("en-US");
      text.textContent = `${name}: ${number(accepted)} accepted, ${number(handedOn)} handed on`;
    }
  };
  const show = () => {
    const at = accept();
    const found = outcome(at);
    const write = (name, text) => { find(`[data-out="${name}"]`).textContent = text; };
    write("accuracy", percent(found.accuracy));
    write("drop", points(found.drop));
    write("chip", cost(found.chip));
    write("total", cost(found.total));
    write("rates", found.rates.map(percent).join(", then "));
    write("saving", percent(1 - found.chip / data.best_static[1]));
    at.forEach((code, stage) => {
      const said = minus((code * data.stages[stage].score_scale).toFixed(4));
      find(`#threshold-${stage + 1}-value`).textContent = said;
      sliders[stage].setAttribute("aria-valuetext", said);
      showGate(stage, code);
    });
    countFirst(at[0]);
    const [x, y] = data.plane;
    move(find('#threshold [data-part="here"] circle'), { cx: place(x, found.chip), cy: place(y, 100 * found.accuracy) });
    if (gates > 1) find('#threshold [data-part="curve"] polyline').setAttribute("points", curve(at).join(" "));
    // Later stages see other samples once an earlier threshold moves: their bars are those of the choice.
    for (let stage = 1; stage <= gates; stage += 1) {
      const moved = at.slice(0, stage).some((code, i) => code !== chosen[i]);
      find(`#stage-${stage + 1}`).classList.toggle("stale", moved);
    }
  };
  const set = (codes) => {
    codes.forEach((code, stage) => { sliders[stage].value = like(stage, code); });
    show();
  };
  sliders.forEach((slider, stage) => {
    slider.max = choices[stage].length - 1;
    slider.addEventListener("input", () => {
      show();
      remember("at", accept().join(","));
    });
  });
  find("#reset").addEventListener("click", () => { set(chosen); state.delete("at"); remember("at", chosen.join(",")); });
  const given = (state.get("at") || "").split(",").map(Number);
  find("#thresholds").hidden = false;
  set(given.length === gates && given.every(Number.isFinite) && state.has("at") ? given : chosen);
})();
