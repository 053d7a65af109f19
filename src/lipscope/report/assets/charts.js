"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const root = document.documentElement;
  const config = { displayModeBar: false, doubleClick: false, responsive: true, showTips: false };

  // Colours named var(--x) come from the style sheet, so that charts follow the page's theme.
  const resolve = (value, style, key = "") => {
    if (Array.isArray(value)) return value.map((item) => resolve(item, style, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, resolve(item, style, name)]));
    }
    const named = /color$/.test(key) && typeof value === "string" && /^var\((--[a-z]+)\)$/.exec(value);
    return named ? style.getPropertyValue(named[1]).trim() : value;
  };

  const axis = (given) => ({
    automargin: true,
    fixedrange: true,
    gridcolor: "var(--grid)",
    zeroline: false,
    ticklabelstandoff: 5,
    ...given,
    title: { standoff: 10, ...given.title },
  });

  const slim = matchMedia("(max-width: 40rem)");

  const draw = (width) => {
    const style = getComputedStyle(root);
    for (const { id, data, layout, narrow } of charts) {
      const element = document.getElementById(id);
      const full = {
        autosize: width === undefined,
        dragmode: false,
        showlegend: false,
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { family: style.fontFamily, size: 12, color: "var(--muted)" },
        hoverlabel: { bgcolor: "var(--page)", bordercolor: "var(--rule)", font: { color: "var(--ink)", size: 12 } },
        ...layout,
      };
      if (width !== undefined) full.width = Math.min(width, element.clientWidth || width);
      for (const name of Object.keys(full)) {
        if (/^[xy]axis\d*$/.test(name)) full[name] = axis({ tickangle: 0, ...full[name], ...(slim.matches && narrow[name]) });
      }
      Plotly.react(element, resolve(data, style), resolve(full, style), config);
      // The element that holds it is the picture, with a description; what it is made of says nothing more.
      for (const svg of element.querySelectorAll("svg")) {
        svg.setAttribute("focusable", "false");
        svg.setAttribute("aria-hidden", "true");
      }
    }
    document.getElementById("js-plotly-tester")?.setAttribute("aria-hidden", "true");
  };

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paper = 640;
  dark.addEventListener("change", () => draw());
  slim.addEventListener("change", () => draw());
  let opened = [];
  addEventListener("beforeprint", () => {
    root.dataset.print = "";
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
    draw(paper);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.print;
    for (const details of opened) details.open = false;
    draw();
  });
  draw();
})();
