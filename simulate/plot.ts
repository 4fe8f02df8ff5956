/** One line of a plot. Times are of the day, from 0 to 1. */
interface Line {
  name: string
  points: { time: number; value: number }[]
}

/** Lines that share an axis, one above the other with those of other axes. */
export interface Panel {
  title: string
  unit: string
  lines: Line[]
}

const width = 900
const panelHeight = 150
const margin = { left: 70, right: 160, top: 34, bottom: 26 }
const colours = ['#1f6feb', '#d1242f', '#1a7f37', '#8250df']
const hours = [0, 6, 12, 18, 24]

const escaped = (text: string) => text.replace(/[&<>]/g, (sign) => `&#${sign.charCodeAt(0)};`)

/** The first of 1, 2, 5, 10, 20 … that is not below a value. */
function roundUp(value: number): number {
  if (!(value > 0)) return 1
  const power = 10 ** Math.floor(Math.log10(value))
  return ([1, 2, 5, 10].find((factor) => factor * power >= value) ?? 10) * power
}

const written = (value: number) => String(Number(value.toPrecision(3)))

function drawPanel({ title, unit, lines }: Panel, top: number, shaded: { from: number; to: number }): string {
  const most = roundUp(Math.max(...lines.flatMap(({ points }) => points.map(({ value }) => value))))
  const inner = { width: width - margin.left - margin.right, height: panelHeight - margin.top - margin.bottom }
  const x = (time: number) => margin.left + time * inner.width
  const y = (value: number) => top + margin.top + inner.height * (1 - value / most)
  const parts = [
    `<text x="${margin.left}" y="${top + 20}" font-weight="bold">${escaped(title)}, ${escaped(unit)}</text>`,
    `<rect x="${x(shaded.from)}" y="${y(most)}" width="${x(shaded.to) - x(shaded.from)}" height="${inner.height}" fill="#d1242f" opacity="0.12"/>`,
  ]
  for (const value of [0, most / 2, most])
    parts.push(
      `<line x1="${x(0)}" x2="${x(1)}" y1="${y(value)}" y2="${y(value)}" stroke="#d0d7de"/>`,
      `<text x="${x(0) - 8}" y="${y(value) + 4}" text-anchor="end">${written(value)}</text>`,
    )
  for (const hour of hours)
    parts.push(`<text x="${x(hour / 24)}" y="${y(0) + 18}" text-anchor="middle">${hour}:00</text>`)
  lines.forEach(({ name, points }, index) => {
    const colour = colours[index % colours.length]
    const path = points.map(({ time, value }) => `${x(time).toFixed(1)},${y(value).toFixed(1)}`).join(' ')
    parts.push(
      `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="1.5"/>`,
      `<text x="${x(1) + 10}" y="${top + margin.top + 10 + 18 * index}" fill="${colour}">${escaped(name)}</text>`,
    )
  })
  return parts.join('\n')
}

/** Draws the panels as an SVG, with a time of the day that is shaded in each. */
export function draw(panels: readonly Panel[], shaded: { from: number; to: number }): string {
  const height = panels.length * panelHeight + 10
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">`,
    '<title>A day of a fleet</title>',
    `<rect width="${width}" height="${height}" fill="#ffffff"/>`,
    ...panels.map((panel, index) => drawPanel(panel, index * panelHeight, shaded)),
    '</svg>',
    '',
  ].join('\n')
}
