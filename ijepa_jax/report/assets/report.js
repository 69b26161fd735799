'use strict';

// The theme follows the system until the button says otherwise.
const root = document.documentElement;
const button = document.getElementById('theme');
const system = matchMedia('(prefers-color-scheme: dark)');
const isDark = () => (root.dataset.theme || (system.matches ? 'dark' : 'light')) === 'dark';
const label = () => { button.textContent = isDark() ? 'Light' : 'Dark'; };
button.hidden = false;
button.addEventListener('click', () => {
  root.dataset.theme = isDark() ? 'light' : 'dark';
  label();
});
system.addEventListener('change', label);
label();

// Values under the pointer, or step by step with the arrow keys.
function show(value, percent) {
  if (percent) return (100 * value).toFixed(1) + ' %';
  if (value !== 0 && Math.abs(value) < 1e-4) return value.toExponential(2);
  return Number(value.toPrecision(4)).toLocaleString('en', { maximumSignificantDigits: 4 });
}

function shape(name, attributes) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  return element;
}

const NEAR = 6; // of the 420 that a chart is wide

function follow(svg) {
  const data = JSON.parse(svg.dataset.chart);
  const reading = svg.parentElement.querySelector('.reading');
  const steps = [...new Set(data.series.flatMap((s) => s.points.map((p) => p[0])))]
    .sort((a, b) => a - b);
  const places = new Map(data.series.flatMap((s) => s.points.map((p) => [p[0], p[2]])));
  const [width, height] = svg.getAttribute('viewBox').split(' ').slice(2).map(Number);
  const drawn = svg.appendChild(shape('g', {}));
  let at = null;

  function hide() {
    at = null;
    drawn.replaceChildren();
    reading.hidden = true;
  }

  function read(index) {
    at = Math.min(Math.max(index, 0), steps.length - 1);
    const step = steps[at];
    const x = places.get(step);
    const lines = ['step ' + step.toLocaleString('en')];
    drawn.replaceChildren(shape('line', {
      x1: x, x2: x, y1: 8, y2: height - 28, class: 'cursor',
    }));
    for (const series of data.series) {
      // Runs are measured at different steps: the nearest point, if it is near.
      const gap = (p) => Math.abs(p[2] - x);
      const point = series.points.reduce((a, b) => (gap(b) < gap(a) ? b : a));
      if (gap(point) > NEAR) continue;
      lines.push(series.label + ' ' + show(point[1], data.percent));
      drawn.append(shape('circle', {
        cx: point[2], cy: point[3], r: 4.5, class: 'mark ' + series.style,
      }));
    }
    reading.replaceChildren(...lines.map((line) => {
      const span = document.createElement('span');
      span.textContent = line;
      return span;
    }));
    reading.className = 'reading ' + (x > width / 2 ? 'left' : 'right');
    reading.hidden = false;
  }

  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * width;
    let best = 0;
    steps.forEach((step, i) => {
      if (Math.abs(places.get(step) - x) < Math.abs(places.get(steps[best]) - x)) best = i;
    });
    read(best);
  });
  svg.addEventListener('pointerleave', hide);
  svg.addEventListener('blur', hide);
  svg.addEventListener('keydown', (event) => {
    const last = steps.length - 1;
    const next = {
      ArrowLeft: at === null ? last : at - 1,
      ArrowRight: at === null ? 0 : at + 1,
      Home: 0,
      End: last,
    }[event.key];
    if (next !== undefined) {
      read(next);
      event.preventDefault();
    } else if (event.key === 'Escape') {
      hide();
    }
  });
}

document.querySelectorAll('svg[data-chart]').forEach(follow);
