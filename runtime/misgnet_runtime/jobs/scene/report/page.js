"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const viewer = find("viewer"), handle = find("handle"), mark = find("mark"), zoomed = find("zoom");
  const layers = viewer.querySelectorAll(".layer");
  const width = Number(viewer.dataset.width), height = Number(viewer.dataset.height);
  const limit = (value, low, high) => Math.min(Math.max(value, low), high);
  // Zoom relative to the whole scene; centre of the view and the marked box as shares of the scene.
  let zoom = 1, x = 0.5, y = 0.5, divider = 50, box = null;

  const fit = () => Math.min(viewer.clientWidth / width, viewer.clientHeight / height);
  const most = () => Math.max(2, 16 / fit());

  function show() {
    const across = viewer.clientWidth, down = viewer.clientHeight, scale = fit() * zoom;
    [x, y] = zoom === 1 ? [0.5, 0.5] : [limit(x, 0, 1), limit(y, 0, 1)];
    const left = across / 2 - x * width * scale, top = down / 2 - y * height * scale;
    for (const layer of layers) {
      layer.style.width = `${width}px`;
      layer.style.height = `${height}px`;
      layer.style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
    }
    viewer.classList.toggle("near", scale >= 2);
    viewer.classList.toggle("zoomed", zoom > 1);
    mark.hidden = box === null;
    if (box) {
      const [boxLeft, boxTop, boxWidth, boxHeight] = box, margin = 6;
      mark.style.left = `${left + boxLeft * width * scale - margin}px`;
      mark.style.top = `${top + boxTop * height * scale - margin}px`;
      mark.style.width = `${boxWidth * width * scale + 2 * margin}px`;
      mark.style.height = `${boxHeight * height * scale + 2 * margin}px`;
    }
    zoomed.textContent = `Zoom ${zoom.toFixed(1)}`;
  }

  // Keeps the point of the scene below (px, py), in pixels of the viewer, where it is.
  function zoomTo(wanted, px = viewer.clientWidth / 2, py = viewer.clientHeight / 2) {
    const before = fit() * zoom;
    zoom = limit(wanted, 1, most());
    const after = fit() * zoom, dx = px - viewer.clientWidth / 2, dy = py - viewer.clientHeight / 2;
    x += dx / width * (1 / before - 1 / after);
    y += dy / height * (1 / before - 1 / after);
    show();
  }

  function move(dx, dy) {
    x += dx / (width * fit() * zoom);
    y += dy / (height * fit() * zoom);
    show();
  }

  function whole() {
    [zoom, x, y, box] = [1, 0.5, 0.5, null];
    for (const row of document.querySelectorAll("tr.chosen")) row.classList.remove("chosen");
    show();
  }

  function divide(percent) {
    divider = limit(percent, 0, 100);
    viewer.style.setProperty("--divider", `${divider}%`);
    handle.setAttribute("aria-valuenow", String(Math.round(divider)));
    handle.setAttribute("aria-valuetext", `${Math.round(divider)} % of the picture shows before`);
  }

  function centre(row) {
    whole();
    box = row.dataset.box.split(",").map(Number);
    [x, y] = [box[0] + box[2] / 2, box[1] + box[3] / 2];
    const scales = [viewer.clientWidth / (box[2] * width), viewer.clientHeight / (box[3] * height)];
    zoom = limit(0.35 * Math.min(...scales) / fit(), 1, most());
    row.classList.add("chosen");
    show();
    viewer.scrollIntoView({ block: "nearest" });
    find("status").textContent = `Change ${row.dataset.number} is in the centre, zoom ${zoom.toFixed(1)}.`;
  }

  const pointers = new Map();  // that move the picture
  let dividing = null;  // the pointer that moves the divider
  const spread = () => {
    const [a, b] = pointers.values();
    return [Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY), (a.clientX + b.clientX) / 2, (a.clientY + b.clientY) / 2];
  };
  viewer.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    pointers.set(event.pointerId, event);
    viewer.classList.add("moving");
  });
  addEventListener("pointermove", (event) => {
    if (event.pointerId === dividing) {
      const edge = viewer.getBoundingClientRect();
      divide(100 * (event.clientX - edge.left) / edge.width);
    }
    const last = pointers.get(event.pointerId);
    if (!last) return;
    if (pointers.size === 2) {
      const [old] = spread();
      pointers.set(event.pointerId, event);
      const [now, px, py] = spread(), edge = viewer.getBoundingClientRect();
      zoomTo(zoom * now / Math.max(old, 1), px - edge.left, py - edge.top);
    } else {
      pointers.set(event.pointerId, event);
      move(last.clientX - event.clientX, last.clientY - event.clientY);
    }
  });
  for (const name of ["pointerup", "pointercancel"]) {
    addEventListener(name, (event) => {
      pointers.delete(event.pointerId);
      if (event.pointerId === dividing) dividing = null;
      viewer.classList.toggle("moving", pointers.size > 0);
    });
  }
  viewer.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== viewer) return;  // the wheel scrolls the page
    event.preventDefault();
    const edge = viewer.getBoundingClientRect();
    zoomTo(zoom * Math.exp(-event.deltaY / 300), event.clientX - edge.left, event.clientY - edge.top);
  }, { passive: false });
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 0.1 * Math.min(viewer.clientWidth, viewer.clientHeight);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const zooms = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, "_": 1 / 1.5 };
    if (event.key in zooms) zoomTo(zoom * zooms[event.key]);
    else if (event.key === "0") whole();
    else if (event.key in moves && event.target === viewer && zoom > 1) move(...moves[event.key]);
    else return;
    event.preventDefault();
  });

  handle.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.stopPropagation();
    dividing = event.pointerId;
  });
  handle.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    divide(divider + steps[event.key]);
  });

  find("closer").addEventListener("click", () => zoomTo(zoom * 1.5));
  find("wider").addEventListener("click", () => zoomTo(zoom / 1.5));
  find("whole").addEventListener("click", whole);
  find("overlay").addEventListener("change", (event) => viewer.classList.toggle("plain", !event.target.checked));
  for (const row of document.querySelectorAll("tr[data-box]")) row.addEventListener("click", () => centre(row));

  document.documentElement.classList.add("live");
  viewer.tabIndex = 0;
  divide(divider);
  new ResizeObserver(show).observe(viewer);
  show();
})();
