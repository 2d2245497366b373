// The studio's behaviour: keys, the time a vote takes, zoom, and votes that are sent until they are stored.
"use strict";
(() => {
  const AGAIN = 1500; // milliseconds until a vote is sent once more
  let shownAt = performance.now();
  const problem = () => document.getElementById("problem");

  function say(text) {
    const line = problem();
    if (!line) return;
    line.textContent = text;
    line.hidden = !text;
  }

  function typing(target) {
    return target.closest("input, textarea, select, [contenteditable]");
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || typing(event.target)) return;
    const zoom = document.getElementById("zoom");
    if (event.key === "z" && zoom) {
      event.preventDefault();
      toggleZoom(zoom);
      return;
    }
    if ((event.key === " " || event.key === "Enter") && event.target.closest("button, a, summary")) return;
    const button = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
    if (!button || button.disabled) return;
    event.preventDefault();
    if (zoom && zoom.open) zoom.close();
    // A form that was swapped in this moment would be sent by the browser itself, and lost.
    window.htmx.process(button.form || button);
    button.click();
  });

  function toggleZoom(zoom) {
    if (zoom.open) {
      zoom.close();
      return;
    }
    const sides = document.createElement("div");
    sides.className = "sides";
    for (const image of document.querySelectorAll(".ballot .picture img")) sides.append(image.cloneNode());
    const form = document.createElement("form");
    form.method = "dialog";
    const close = document.createElement("button");
    close.textContent = "Close";
    form.append(close);
    zoom.replaceChildren(sides, form);
    if (sides.children.length) zoom.showModal();
  }

  document.addEventListener("click", (event) => {
    const zoom = document.getElementById("zoom");
    if (zoom && event.target.closest("[data-zoom]")) toggleZoom(zoom);
  });

  document.addEventListener(
    "submit",
    (event) => {
      const field = event.target.querySelector('input[name="seconds"]');
      if (field) field.value = ((performance.now() - shownAt) / 1000).toFixed(2);
    },
    true,
  );

  // A box on a picture, as shares of its sides, in the field that is sent.
  const canvas = document.getElementById("canvas");
  if (canvas) {
    const field = document.getElementById("box");
    const drawn = document.getElementById("drawn");
    let start = null;
    const show = ([left, top, right, bottom]) => {
      for (const [name, value] of [["x", left], ["y", top], ["width", right - left], ["height", bottom - top]])
        drawn.setAttribute(name, String(Math.max(0, value || 0)));
    };
    const place = (event) => {
      const frame = canvas.getBoundingClientRect();
      const share = (value, size) => Math.min(1, Math.max(0, value / size));
      return [share(event.clientX - frame.left, frame.width), share(event.clientY - frame.top, frame.height)];
    };
    canvas.addEventListener("pointerdown", (event) => {
      start = place(event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!start) return;
      const [x, y] = place(event);
      const box = [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
      field.value = box.map((edge) => edge.toFixed(3)).join(", ");
      show(box);
    });
    canvas.addEventListener("pointerup", () => (start = null));
    field.addEventListener("input", () => show(field.value.split(",").map(Number)));
  }

  document.addEventListener("htmx:after:swap", (event) => {
    const context = event.detail.ctx;
    if (context && context.response && context.response.status >= 400) return; // nothing was swapped
    shownAt = performance.now();
    say("");
  });

  // Nothing answered: the same vote is sent again, and counts once, since it has the same key.
  document.addEventListener("htmx:error", (event) => {
    const context = event.detail.ctx;
    if (!context || context.request.method !== "POST") return;
    say("The studio does not answer: this is not stored yet, and is sent again. Keep this page open.");
    const source = context.sourceElement;
    const submitter = context.request && context.request.submitter;
    setTimeout(() => {
      if (!source.isConnected) return;
      if (source instanceof HTMLFormElement) source.requestSubmit(submitter || undefined);
      else source.click();
    }, AGAIN);
  });

  document.addEventListener("htmx:response:error", (event) => {
    say(event.detail.ctx.text || "That did not work.");
  });
})();
