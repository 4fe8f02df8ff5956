/** A bar of a plot; without a value, the words that tell why. */
export interface Bar {
  name: string
  value: number | undefined
  /** The end of the thin line beside it. */
  p95?: number | undefined
  absent: string
}

const width = 760
const margin = { left: 150, right: 110, top: 56, bottom: 44 }
const inner = width - margin.left - margin.right
/** A card of its own: pictures in a page do not know whether the page is dark. */
const colours = {
  card: '#ffffff',
  edge: '#d0d7de',
  text: '#1f2328',
  faint: '#59636e',
  grid: '#e4e8ec',
  mark: '#0969da',
}

const escaped = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;')
const fixed = (value: number) => String(Math.round(value * 10) / 10)

interface TextOptions {
  anchor?: 'start' | 'middle' | 'end'
  size?: number
  fill?: string
}

const text = (
  x: number,
  y: number,
  words: string,
  { anchor = 'start', size = 13, fill = colours.text }: TextOptions = {},
) =>
  `<text x="${fixed(x)}" y="${fixed(y)}" text-anchor="${anchor}" font-size="${size}" fill="${fill}">${escaped(words)}</text>`

const line = (x1: number, y1: number, x2: number, y2: number, stroke: string, thickness = 1) =>
  `<line x1="${fixed(x1)}" y1="${fixed(y1)}" x2="${fixed(x2)}" y2="${fixed(y2)}" stroke="${stroke}" stroke-width="${thickness}"/>`

/** Round numbers from 0 to at least `most`, about five of them. */
function ticksTo(most: number): number[] {
  const rough = Math.max(most, 1e-9) / 5
  const power = 10 ** Math.floor(Math.log10(rough))
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough) ?? rough
  return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, index) => Number((index * step).toPrecision(6)))
}

function svg(height: number, title: string, parts: string[]): string {
  return `${[
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" font-family="system-ui, sans-serif">`,
    `<title>${escaped(title)}</title>`,
    `<rect x="0.5" y="0.5" width="${width - 1}" height="${height - 1}" rx="8" fill="${colours.card}" stroke="${colours.edge}"/>`,
    text(20, 32, title, { size: 16 }),
    ...parts,
    '</svg>',
  ].join('\n')}\n`
}

/** Draws horizontal bars as an SVG, with a thin line to the p95 of each. */
export function plotBars(title: string, unit: string, bars: Bar[]): string {
  const step = 46
  const bottom = margin.top + bars.length * step
  const ticks = ticksTo(Math.max(...bars.map(({ value = 0, p95 = 0 }) => Math.max(value, p95))))
  const x = (value: number) => margin.left + (inner * value) / (ticks.at(-1) || 1)
  const axis = ticks.flatMap((tick) => [
    line(x(tick), margin.top, x(tick), bottom, colours.grid),
    text(x(tick), bottom + 20, `${tick} ${unit}`, { anchor: 'middle', size: 12, fill: colours.faint }),
  ])
  const drawn = bars.flatMap(({ name, value, p95 = value, absent }, index) => {
    const y = margin.top + index * step + step / 2
    const label = text(margin.left - 12, y + 4, name, { anchor: 'end' })
    if (value === undefined || p95 === undefined)
      return [label, text(margin.left + 8, y + 4, absent, { fill: colours.faint })]
    return [
      label,
      `<rect x="${margin.left}" y="${fixed(y - 12)}" width="${fixed(Math.max(2, x(value) - margin.left))}" height="24" rx="3" fill="${colours.mark}"/>`,
      line(x(value), y, x(p95), y, colours.text, 1.5),
      line(x(p95), y - 6, x(p95), y + 6, colours.text, 1.5),
      text(x(p95) + 10, y + 4, `${value.toFixed(value < 10 ? 2 : 1)} ${unit}`),
    ]
  })
  return svg(bottom + margin.bottom, title, [...axis, ...drawn])
}

/** Draws a line through points `[x, y]` as an SVG, from 0 on both axes. */
export function plotLine(title: string, units: { x: string; y: string }, points: [number, number][]): string {
  const height = 340
  const bottom = height - margin.bottom
  const left = 80
  const wide = width - left - 30
  const xTicks = ticksTo(Math.max(...points.map(([x]) => x)))
  const yTicks = ticksTo(Math.max(...points.map(([, y]) => y)))
  const mostX = Math.max(...points.map(([x]) => x)) || 1
  const x = (value: number) => left + (wide * value) / mostX
  const y = (value: number) => bottom - ((bottom - margin.top) * value) / (yTicks.at(-1) || 1)
  const axes = [
    ...yTicks.flatMap((tick) => [
      line(left, y(tick), left + wide, y(tick), colours.grid),
      text(left - 10, y(tick) + 4, `${tick} ${units.y}`, { anchor: 'end', size: 12, fill: colours.faint }),
    ]),
    ...xTicks
      .filter((tick) => tick <= mostX)
      .map((tick) =>
        text(x(tick), bottom + 22, `${tick} ${units.x}`, { anchor: 'middle', size: 12, fill: colours.faint }),
      ),
  ]
  const path = points.map(([at, value]) => `${fixed(x(at))},${fixed(y(value))}`).join(' ')
  return svg(height, title, [
    ...axes,
    `<polyline points="${path}" fill="none" stroke="${colours.mark}" stroke-width="2" stroke-linejoin="round"/>`,
  ])
}
