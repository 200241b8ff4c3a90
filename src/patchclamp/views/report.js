"use strict";
(() => {
  const PRINTED_WIDTH = 640; // CSS pixels that fit between the margins of both A4 and Letter
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)");
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const palette = plots.length ? read("palette") : null;
  const drawn = new Set();
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch.matches ? false : "hover",
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]], // named, so that none that calls a server is among them
    toImageButtonOptions: { format: "svg" },
  };

  function themed(figure, theme) {
    const layout = figure.layout;
    const colour = palette.chrome[theme];
    layout.font = { ...layout.font, color: colour.ink };
    layout.hoverlabel = { ...layout.hoverlabel, bgcolor: colour.raised, bordercolor: colour.rule };
    layout.hoverlabel.font = { ...layout.hoverlabel.font, color: colour.ink };
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour.faint, activecolor: colour.accent };
    const axes = Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key));
    for (const key of new Set([...axes, "xaxis", "yaxis"])) {
      const seen = { gridcolor: colour.grid, zerolinecolor: colour.zero, tickcolor: colour.rule };
      layout[key] = { ...layout[key], ...seen };
    }
    const common = layout.meta && layout.meta.coloraxis;
    if (common) layout.coloraxis = { ...layout.coloraxis, colorscale: palette[common][theme] };
    for (const trace of figure.data) {
      if (trace.meta && trace.meta.scale) trace.colorscale = palette[trace.meta.scale][theme];
      if (trace.meta && trace.meta.whiskers) trace.error_x.color = colour.ink;
    }
    if (touch.matches) layout.dragmode = false; // a finger on a figure scrolls the page
    return figure;
  }

  function draw(plot, { printing = false } = {}) {
    const figure = themed(read(plot.dataset.figure), dark.matches && !printing ? "dark" : "light");
    const widest = (figure.layout.meta && figure.layout.meta.max_width) || Infinity;
    figure.layout.autosize = true;
    if (printing) figure.layout.width = Math.min(PRINTED_WIDTH, widest);
    plot.querySelector("noscript")?.remove();
    drawn.add(plot);
    return Plotly.react(plot, figure.data, figure.layout, config);
  }

  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        watcher.unobserve(target);
        draw(target);
      }
    },
    { rootMargin: "600px 0px" },
  );
  for (const plot of plots) watcher.observe(plot);
  dark.addEventListener("change", () => drawn.forEach((plot) => draw(plot)));

  // Paper shows everything: closed details are opened, and figures not yet reached are drawn, in ink on white.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const element of opened) element.open = true;
    for (const plot of plots) draw(plot, { printing: true });
  });
  addEventListener("afterprint", () => {
    for (const plot of plots) draw(plot);
    for (const element of opened) element.open = false;
  });

  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const here = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        for (const link of links.values()) link.removeAttribute("aria-current");
        links.get(target.id).setAttribute("aria-current", "true");
      }
    },
    { rootMargin: "-10% 0px -80% 0px" },
  );
  for (const id of links.keys()) here.observe(document.getElementById(id));
})();
